"""From merged candidates to exemplars: which to recompute, who is in, and how sure that is."""
