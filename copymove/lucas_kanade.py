"""Inverse-compositional Lucas-Kanade alignment (Baker and Matthews 2004), compiled.

The template's gradients stay the same through all steps, so its Jacobian and the normal equations are made once. Each
step samples the partner under the present map, solves for the small motion of the template that explains the residual
of the two, and composes the map with that motion.
"""

import numba
import numpy as np

# The parts of refine_affine are inlined and so compiled as one function. With fastmath the compiler chooses the order
# of sums, and it would choose another one, with other last digits, for parts that are compiled by themselves.
_inlined = numba.njit(fastmath=True, inline="always")

MIN_DEVIATION = 1e-3  # standard deviation, in grey levels, below which there is no texture to align

MAX_STEP = 3.0  # pixels that one step may move any pixel: the gradient is no guide further away


@numba.njit(cache=True, fastmath=True)
def sample_bilinear(image: np.ndarray, x: float, y: float) -> float:
    """Value of an image (H, W) at (x, y) by bilinear interpolation; beyond the border that of the nearest pixel."""
    height, width = image.shape
    x = min(max(x, 0.0), width - 1.001)
    y = min(max(y, 0.0), height - 1.001)
    i = int(y)
    j = int(x)
    a = y - i
    b = x - j
    return (1 - a) * ((1 - b) * image[i, j] + b * image[i, j + 1]) + a * (
        (1 - b) * image[i + 1, j] + b * image[i + 1, j + 1]
    )


@numba.njit(cache=True)
def _cholesky(matrix: np.ndarray) -> None:
    """Replace a small positive definite matrix, of which only the lower half is read, by its lower Cholesky factor."""
    for k in range(len(matrix)):
        for m in range(k + 1):
            total = matrix[k, m]
            for p in range(m):
                total -= matrix[k, p] * matrix[m, p]
            matrix[k, m] = np.sqrt(max(total, 1e-12)) if k == m else total / matrix[m, m]


@numba.njit(cache=True)
def _solve(factor: np.ndarray, values: np.ndarray) -> None:
    """Replace a right-hand side by the solution of the equations whose lower Cholesky factor is given."""
    n = len(values)
    for k in range(n):
        for p in range(k):
            values[k] -= factor[k, p] * values[p]
        values[k] /= factor[k, k]
    for k in range(n - 1, -1, -1):
        for p in range(k + 1, n):
            values[k] -= factor[p, k] * values[p]
        values[k] /= factor[k, k]


@_inlined
def _sample_template(
    template: np.ndarray, xs: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, float, float, float, float]:
    """Values (n,) of the template's pixels less their mean, and their standard deviation.

    Then the pixels' mean x and y, and their largest distance from it along x or y (at least 1).
    """
    n = len(xs)
    values = np.empty(n)
    cx = 0.0
    cy = 0.0
    mean = 0.0
    for i in range(n):
        cx += xs[i]
        cy += ys[i]
        values[i] = template[ys[i], xs[i]]
        mean += values[i]
    cx /= n
    cy /= n
    mean /= n
    power = 0.0
    extent = 1.0
    for i in range(n):
        values[i] -= mean
        power += values[i] * values[i]
        extent = max(extent, abs(xs[i] - cx), abs(ys[i] - cy))
    return values, np.sqrt(power / n), cx, cy, extent


@_inlined
def _jacobian(
    template: np.ndarray,
    deviation: float,
    xs: np.ndarray,
    ys: np.ndarray,
    cx: float,
    cy: float,
    extent: float,
    full: bool,
) -> np.ndarray:
    """Derivatives (n, 6 or 4) of the template's normalised values by the parameters of a small motion.

    Parameters are the shift (x, y), then either the four entries of the linear part, row by row, or scale and rotation,
    both in units of 1 / extent around the centre.
    """
    jacobian = np.empty((len(xs), 6 if full else 4))
    for i in range(len(xs)):
        x, y = xs[i], ys[i]
        gx = (template[y, min(x + 1, template.shape[1] - 1)] - template[y, max(x - 1, 0)]) / (2 * deviation)
        gy = (template[min(y + 1, template.shape[0] - 1), x] - template[max(y - 1, 0), x]) / (2 * deviation)
        u = (x - cx) / extent
        v = (y - cy) / extent
        jacobian[i, 0] = gx
        jacobian[i, 1] = gy
        if full:
            jacobian[i, 2] = gx * u
            jacobian[i, 3] = gx * v
            jacobian[i, 4] = gy * u
            jacobian[i, 5] = gy * v
        else:
            jacobian[i, 2] = gx * u + gy * v
            jacobian[i, 3] = gy * u - gx * v
    return jacobian


@_inlined
def _factored_normal_equations(jacobian: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of the Jacobian's normal matrix, slightly damped (Levenberg and Marquardt)."""
    n, count = jacobian.shape
    normal = np.zeros((count, count))
    for i in range(n):
        for k in range(count):
            for m in range(k + 1):
                normal[k, m] += jacobian[i, k] * jacobian[i, m]
    for k in range(count):
        normal[k, k] *= 1 + 1e-4
        normal[k, k] += 1e-6 * n
    _cholesky(normal)
    return normal


@_inlined
def _sample_partner(
    partner: np.ndarray, affine: np.ndarray, xs: np.ndarray, ys: np.ndarray, values: np.ndarray, warped: np.ndarray
) -> float:
    """Fill `warped` with the partner's values under the map, of mean 0 and deviation 1; their correlation to `values`.

    -2 where more than a third of the pixels leave the image or the partner has no texture.
    """
    n = len(xs)
    height, width = partner.shape
    mean = 0.0
    outside = 0
    for i in range(n):
        px = affine[0, 0] * xs[i] + affine[0, 1] * ys[i] + affine[0, 2]
        py = affine[1, 0] * xs[i] + affine[1, 1] * ys[i] + affine[1, 2]
        if px < 0 or py < 0 or px > width - 1 or py > height - 1:
            outside += 1
        warped[i] = sample_bilinear(partner, px, py)
        mean += warped[i]
    if outside * 3 > n:
        return -2.0
    mean /= n
    power = 0.0
    for i in range(n):
        warped[i] -= mean
        power += warped[i] * warped[i]
    power = np.sqrt(power / n)
    if power < MIN_DEVIATION:
        return -2.0
    correlation = 0.0
    for i in range(n):
        warped[i] /= power
        correlation += warped[i] * values[i]
    return correlation / n


@_inlined
def _motion(
    jacobian: np.ndarray, factor: np.ndarray, values: np.ndarray, warped: np.ndarray, motion: np.ndarray
) -> None:
    """Fill `motion` with the Gauss-Newton step that explains the residual values - warped."""
    motion[:] = 0
    for i in range(len(values)):
        residual = values[i] - warped[i]
        for k in range(len(motion)):
            motion[k] += jacobian[i, k] * residual
    _solve(factor, motion)


@_inlined
def _compose(affine: np.ndarray, motion: np.ndarray, cx: float, cy: float, extent: float) -> None:
    """Change a map A to A(1 + B), where B is the motion of the template; B is shortened to MAX_STEP."""
    bx = motion[0]
    by = motion[1]
    if len(motion) == 6:
        a, b, c, d = motion[2] / extent, motion[3] / extent, motion[4] / extent, motion[5] / extent
    else:
        a, b, c, d = motion[2] / extent, -motion[3] / extent, motion[3] / extent, motion[2] / extent
    size = max(abs(bx), abs(by), max(abs(a) + abs(b), abs(c) + abs(d)) * extent)
    if size > MAX_STEP:
        bx, by = bx * MAX_STEP / size, by * MAX_STEP / size
        a, b, c, d = a * MAX_STEP / size, b * MAX_STEP / size, c * MAX_STEP / size, d * MAX_STEP / size
    # B takes x to x + (bx, by) + [[a, b], [c, d]] (x - centre).
    tx = bx - a * cx - b * cy
    ty = by - c * cx - d * cy
    for r in range(2):
        p, q = affine[r, 0], affine[r, 1]
        affine[r, 0] = p * (1 + a) + q * c
        affine[r, 1] = p * b + q * (1 + d)
        affine[r, 2] += p * tx + q * ty


@numba.njit(cache=True, fastmath=True)
def refine_affine(
    template: np.ndarray,
    partner: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    affine: np.ndarray,
    steps: int,
    full: bool,
) -> tuple[np.ndarray, float]:
    """Refine a map by Gauss-Newton steps on the difference of the normalised values.

    Args:
        template, partner: (H, W) float32; partner(affine(x)) should look like template(x).
        xs, ys: (n,) int64, the template's pixels that are compared.
        affine: (2, 3) float64, template pixel (x, y, 1) -> partner pixel.
        steps: at most this many.
        full: refine all six parameters, else shift, rotation and scale only.
    Returns:
        The refined map, and the correlation of the values under it; -1 where there is no texture or the map leaves
        the image.
    """
    refined = affine.copy()
    values, deviation, cx, cy, extent = _sample_template(template, xs, ys)
    if deviation < MIN_DEVIATION:
        return refined, -1.0
    jacobian = _jacobian(template, deviation, xs, ys, cx, cy, extent, full)
    values /= deviation
    factor = _factored_normal_equations(jacobian)
    warped = np.empty(len(xs))
    motion = np.empty(jacobian.shape[1])
    best = -1.0
    moving = affine.copy()
    for _ in range(steps + 1):
        correlation = _sample_partner(partner, moving, xs, ys, values, warped)
        if correlation < best - 0.02:
            break
        gain = correlation - best
        if correlation > best:
            best = correlation
            refined[:] = moving
        if gain < 1e-4:
            break
        _motion(jacobian, factor, values, warped, motion)
        _compose(moving, motion, cx, cy, extent)
    return refined, best
