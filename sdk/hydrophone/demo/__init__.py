"""``hydrophone demo``: a real language model, listened to live."""
