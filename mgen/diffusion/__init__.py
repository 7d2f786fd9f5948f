"""The mathematics of diffusion and flows, no networks.

`process` (noising, predictions, preconditioning), `schedules` (sampling times), `loss`, `samplers`
(`solvers`, `adaptive` and `trajectory` are its parts), `guidance`, `posterior` (inpainting,
separation, measurements). A denoiser is everywhere a function `denoise(x, t)` to an estimate of
x_0. May import mgen.typing, mgen.tree and mgen.errors only; every family may import it.
"""
