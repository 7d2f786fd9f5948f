"""Trained models as programs for others: TensorFlow SavedModels and `jax.export` artefacts.

`signature` says what is exported, `signatures` makes that of frozen codecs, joint embeddings and
language models, `saved_model` and `stablehlo` are the two formats, `artefact` writes and loads the
folder. `launch/` calls it; nothing under mgen/ imports it.
"""
