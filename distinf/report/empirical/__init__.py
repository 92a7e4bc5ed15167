"""The empirical recipe's report: the measured matrix, its symmetry and what noise does to it."""
