"""Files in, files out: weights, LoRAs, video, cached features. Knows torch and formats; no model, no host."""
