"""Dashboards for Grafana and alert rules for Prometheus, over the metrics of this package."""
