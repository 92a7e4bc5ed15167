"""The spectral recipe's report: targets, what guidance gained, the curvature, one HTML file out."""
