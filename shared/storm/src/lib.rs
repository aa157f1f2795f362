//! Development only: faults at every moment of a deployment, and the verdict on what is left.
