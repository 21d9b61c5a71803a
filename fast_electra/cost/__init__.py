"""What training costs: Table 1 of the paper, the estimate of a run, and the measurement of Table 7."""
