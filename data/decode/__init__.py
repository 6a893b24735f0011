"""Bytes of a sample to frames and words. Input is untrusted: whatever is wrong becomes BadSample."""
