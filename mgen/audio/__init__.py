"""Sound itself: files, resampling, loudness on the host; STFT, mel, CQT, chroma, onsets in JAX.

Host functions take and give numpy float32 `[T, C]`; JAX functions take `[..., T]` and give
`[..., F, M]`, frames first, and are pure, jit-able, differentiable, batched over leading axes.
May import `mgen.typing`, `mgen.tree`, `mgen.errors`; everything else under `mgen/` may import it.
"""
