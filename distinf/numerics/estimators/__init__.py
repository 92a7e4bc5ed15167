"""Influence estimators, one a file: frozen settings and functions on Gram matrices or coordinates.

Sign: score > 0 means that training on the sample helps the query (lowers its loss).
"""
