"""The server: preparation, rounds, routing of messages, checks of answers, checkpoints and resuming, summaries."""
