"""Inverse-compositional Lucas-Kanade alignment, compiled."""

import numba
import numpy as np


@numba.njit(cache=True, fastmath=True)
def sample_bilinear(image: np.ndarray, x: float, y: float) -> float:
    """Bilinear value; the nearest inside outside of the image."""
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
    """Lower Cholesky factor in place of a small positive definite matrix, whose lower half is read."""
    for k in range(len(matrix)):
        for m in range(k + 1):
            total = matrix[k, m]
            for p in range(m):
                total -= matrix[k, p] * matrix[m, p]
            matrix[k, m] = np.sqrt(max(total, 1e-12)) if k == m else total / matrix[m, m]


@numba.njit(cache=True)
def _solve(factor: np.ndarray, values: np.ndarray) -> None:
    """Solve with a lower Cholesky factor, in place."""
    n = len(values)
    for k in range(n):
        for p in range(k):
            values[k] -= factor[k, p] * values[p]
        values[k] /= factor[k, k]
    for k in range(n - 1, -1, -1):
        for p in range(k + 1, n):
            values[k] -= factor[p, k] * values[p]
        values[k] /= factor[k, k]


@numba.njit(cache=True, fastmath=True)
def refine_affine(
    template: np.ndarray,
    partner: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    affine: np.ndarray,
    steps: int,
    full: bool,
) -> float:
    """Gauss-Newton on the zero-mean normalised difference, over the given template pixels; changes `affine`.

    With partner(A(x)) ~ template(x), the template's gradient tells which small affine motion B of the template
    explains what is left, and A becomes A(1 + B). `full`: six parameters, else shift, rotation, scale. Returns the
    correlation; -1 where there is no texture or the map leaves the image.
    """
    n = len(xs)
    count = 6 if full else 4
    values = np.empty(n)
    warped = np.empty(n)
    jacobian = np.empty((n, count))
    height, width = partner.shape
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
    power = np.sqrt(power / n)
    if power < 1e-3:
        return -1.0
    for i in range(n):
        x, y = xs[i], ys[i]
        gx = (template[y, min(x + 1, template.shape[1] - 1)] - template[y, max(x - 1, 0)]) / (2 * power)
        gy = (template[min(y + 1, template.shape[0] - 1), x] - template[max(y - 1, 0), x]) / (2 * power)
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
        values[i] /= power
    normal = np.zeros((count, count))
    for i in range(n):
        for k in range(count):
            for m in range(k + 1):
                normal[k, m] += jacobian[i, k] * jacobian[i, m]
    for k in range(count):
        normal[k, k] *= 1 + 1e-4
        normal[k, k] += 1e-6 * n
    _cholesky(normal)
    motion = np.zeros(count)
    best = -1.0
    kept = affine.copy()
    for _ in range(steps + 1):
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
            break
        mean /= n
        power = 0.0
        for i in range(n):
            warped[i] -= mean
            power += warped[i] * warped[i]
        power = np.sqrt(power / n)
        if power < 1e-3:
            break
        correlation = 0.0
        for i in range(n):
            warped[i] /= power
            correlation += warped[i] * values[i]
        correlation /= n
        if correlation < best - 0.02:
            break
        gain = correlation - best
        if correlation > best:
            best = correlation
            kept[:] = affine
        if gain < 1e-4:
            break
        motion[:] = 0
        for i in range(n):
            left = values[i] - warped[i]
            for k in range(count):
                motion[k] += jacobian[i, k] * left
        _solve(normal, motion)
        bx = motion[0]
        by = motion[1]
        if full:
            a, b, c, d = motion[2] / extent, motion[3] / extent, motion[4] / extent, motion[5] / extent
        else:
            a, b, c, d = motion[2] / extent, -motion[3] / extent, motion[3] / extent, motion[2] / extent
        size = max(abs(bx), abs(by), max(abs(a) + abs(b), abs(c) + abs(d)) * extent)
        if size > 3.0:  # a longer step than the gradient is good for
            bx, by, a, b, c, d = bx * 3 / size, by * 3 / size, a * 3 / size, b * 3 / size, c * 3 / size, d * 3 / size
        # x -> x + (bx, by) + [[a, b], [c, d]] (x - centre), then the old map.
        tx = bx - a * cx - b * cy
        ty = by - c * cx - d * cy
        for r in range(2):
            p, q = affine[r, 0], affine[r, 1]
            affine[r, 0] = p * (1 + a) + q * c
            affine[r, 1] = p * b + q * (1 + d)
            affine[r, 2] += p * tx + q * ty
    affine[:] = kept
    return best
