"""OpenAI's files and batches: what is uploaded, and lines of it that run when nothing more urgent does."""
