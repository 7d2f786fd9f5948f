"""Self-supervised music encoders: w2v-BERT, MERT, MuQ, and a tiny one of each for a laptop."""
