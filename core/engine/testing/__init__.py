"""For tests and for `engine certify`: a device that computes nothing, and the conformance kit."""
