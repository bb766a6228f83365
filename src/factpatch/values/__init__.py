"""The batched value optimization, and the reading of keys and values at the subject's last token."""
