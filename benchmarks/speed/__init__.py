"""What it costs: every figure of docs/performance.md, measured side by side."""
