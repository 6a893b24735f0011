"""What evaluate.py is told: arguments, suites, and the rows of results that follow from them."""
