"""The offline store: draws that are written before a run trains, and read in place of an auxiliary model."""
