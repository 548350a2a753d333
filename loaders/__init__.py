"""Files in, files out: weights, LoRAs, video and cached features. Knows torch and the file formats, no model, no host."""
