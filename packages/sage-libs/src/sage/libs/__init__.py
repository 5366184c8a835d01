"""Layer 4: algorithms with no service behind them."""
