"""The report page: findings in, one self-contained HTML file and its tables out."""
