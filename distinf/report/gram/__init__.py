"""The Gram recipe's report: what was scored, filtered and retrained in, one HTML file out."""
