"""Where in the image each cell's content is shown a second time: a cell's token alone does not tell.

    measures, match = self_correlation(tokens, valid, neighbours=6, exclusion=2)   compares the backbone's tokens
    measures, match = patch_correlation(pixels, valid, exclusion=2)                compares pixels, every 3 px

Tokens lie 14 px apart, but a copy hardly ever lies a multiple of 14 px from its source. A difference of 4 px between
the two grids is enough to lower the share of cells that find their copy from 0.95 to 0.11. So `patch_correlation`
compares each cell with windows 3 px apart, in the eight orientations (right-angle rotations and mirror images) that
need no resampling. Nothing here is learned.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from config import PATCH

SUPPORT_RADIUS = 2  # cells this near (Chebyshev) may support a cell's match by their own
TOKEN_EXTRAS = 11  # measures of `self_correlation` beside the k similarities
PATCH_MEASURES = 13  # measures of `patch_correlation`
WINDOW = 20  # side in pixels of the windows that are compared
STRIDE = 3  # pixels between the windows that a cell is compared with
ORDERS = 6  # a window is described by its cosine waves up to this sum of orders
NOISE = 2.0  # standard deviation, of 255, at which a window's similarity is halved: smooth areas look alike
CHUNK = 64  # cells that are compared together
TOLERANCE = 5  # pixels by which matches that support each other may differ


def self_correlation(tokens: Tensor, valid: Tensor, neighbours: int, exclusion: int) -> tuple[Tensor, Tensor]:
    """Find for each cell the cell elsewhere that is most like it, and whether the neighbouring cells agree.

    A cell has k candidate matches: the k cells of highest cosine similarity among those further than `exclusion`
    (Chebyshev). Take a cell j in the 5 x 5 cells around cell i, at the offset e = j - i. It supports a candidate of i
    if one of its own candidates lies between 0.4 |e| and 2.2 |e| from it: this holds for any copy of half to double
    size, but not if many cells have the same match. It supports the candidate as a plain shift if one of its own
    candidates lies at the offset e from it, +-1 cell. The match of a cell is its candidate with the highest sum of
    similarity and share of the 24 cells that support it.

    Args:
        tokens: (B, G_h, G_w, H). valid: (B, G_h, G_w) bool: cells that take part. neighbours: k.
        exclusion: in cells.
    Returns:
        measures: (B, G_h, G_w, k + 11) float32. First the k similarities, in falling order, and the mean similarity to
            all distant cells. Then of the match: its similarity; its similarity and its support as standard scores
            within the image; the share of the 8 and of the 24 neighbouring cells that support it; the share of the 24
            that support it as a shift; exp(-d^2 / 8) with d the distance in cells from the match's own match back to
            the cell; log(1 + number of cells of the image with the same displacement, +-1 cell); its displacement
            (rows, columns) as a share of the grid. All zero for cells that take no part.
        match: (B, G_h, G_w) int64: the match, counted row by row. No gradient flows through the choice.
    Raises:
        ValueError: some cell has fewer than k cells outside of its neighbourhood.
    """
    height, width = valid.shape[1:]
    z = F.normalize(tokens.float(), dim=-1).flatten(1, 2)  # (B, N, H)
    cells = torch.arange(height * width, device=z.device)
    row, column = cells.div(width, rounding_mode="floor"), cells % width
    distant = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) > exclusion  # (N, N)
    if int(distant.sum(1).min()) < neighbours:
        raise ValueError(f"a grid of {height} x {width} has no {neighbours} cells further than {exclusion} everywhere")
    usable = distant & valid.flatten(1)[:, None]  # (B, N, N)
    products = z @ z.transpose(1, 2)
    similar, found = products.masked_fill(~usable, -1.0).topk(neighbours, dim=2)  # (B, N, k)
    mean = (products * usable).sum(2) / usable.sum(2).clamp(min=1)
    with torch.no_grad():
        place = torch.stack([row[found], column[found]], 3).float().unflatten(1, (height, width))  # (B, G, G, k, 2)
        place = place.masked_fill((similar.unflatten(1, (height, width)) <= -1.0)[..., None], math.inf)
        near, wide, shifted = _support(place, valid)
        choice = (similar.unflatten(1, (height, width)) + wide).argmax(3, keepdim=True)
        match = found.unflatten(1, (height, width)).gather(3, choice)[..., 0]
        own = torch.stack([row, column], 1).float().view(height, width, 2)
        offset = torch.stack([row[match], column[match]], 3) - own  # (B, G, G, 2)
        back = match.flatten(1).gather(1, match.flatten(1)).view_as(match)
        returned = torch.exp(-(torch.stack([row[back], column[back]], 3) - own).square().sum(3) / 8)
        votes = _votes(offset.long(), valid).log1p()
        near, wide, shifted = (share.gather(3, choice)[..., 0] for share in (near, wide, shifted))
    similarity = similar.unflatten(1, (height, width)).gather(3, choice)[..., 0]
    mean = mean.unflatten(1, (height, width))
    scores = [_standard_score(values, valid) for values in (similarity, wide)]
    shape = offset / torch.tensor([height, width], device=z.device)
    single = [mean, similarity, *scores, near, wide, shifted, returned, votes]
    measures = torch.cat([similar.unflatten(1, (height, width)), torch.stack(single, 3), shape], 3)
    return measures * valid[..., None], match


def _support(place: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of the neighbouring cells that support each candidate: of 8 and of 24 as any copy, of 24 as a shift.

    Args:
        place: (B, G_h, G_w, k, 2) row and column of the candidates, inf for none. valid: (B, G_h, G_w) bool.
    Returns:
        Three (B, G_h, G_w, k) float32.
    """
    radius = SUPPORT_RADIUS
    place = place.masked_fill(~valid[..., None, None], math.inf)
    padded = F.pad(place, (0, 0, 0, 0, radius, radius, radius, radius), value=math.inf)
    height, width = valid.shape[1:]
    near, wide, shifted = (torch.zeros(place.shape[:-1], device=place.device) for _ in range(3))
    own = torch.where(place.isfinite(), place, -1e6)[..., :, None, :]  # (B, G, G, k, 1, 2); inf - inf would be nan
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy == dx == 0:
                continue
            theirs = padded[:, radius + dy : radius + dy + height, radius + dx : radius + dx + width, None]
            between = theirs - own  # (B, G, G, k, k, 2)
            distance, step = between.square().sum(-1), dy * dy + dx * dx
            agrees = ((distance >= 0.16 * step) & (distance <= 4.84 * step)).any(-1)
            move = between.sub_(torch.tensor([float(dy), float(dx)], device=place.device)).abs_().amax(-1)
            wide += agrees
            shifted += (move <= 1).any(-1)
            if max(abs(dy), abs(dx)) == 1:
                near += agrees
    cells = (2 * radius + 1) ** 2 - 1
    return near / 8, wide / cells, shifted / cells


def _votes(offset: Tensor, valid: Tensor) -> Tensor:
    """(B, G_h, G_w) float32: number of cells with the same displacement, +-1 cell, as each cell.

    Args:
        offset: (B, G_h, G_w, 2) int64 displacements. valid: (B, G_h, G_w) bool, the cells that are counted.
    """
    batch, height, width = valid.shape
    rows, columns = 2 * height + 1, 2 * width + 1
    index = ((offset[..., 0] + height) * columns + offset[..., 1] + width).flatten(1)
    counts = torch.zeros(batch, rows * columns, device=offset.device)
    counts.scatter_add_(1, index, valid.flatten(1).float())
    counts = 9 * F.avg_pool2d(counts.view(batch, 1, rows, columns), 3, stride=1, padding=1)
    return counts.flatten(1).gather(1, index).view(batch, height, width)


def patch_correlation(pixels: Tensor, valid: Tensor, exclusion: int) -> tuple[Tensor, Tensor]:
    """Find for each cell the window of the image that is most like it, and whether the neighbouring cells agree.

    A window of 20 px around each cell's middle is compared with all windows 3 px apart whose corner is further than
    `exclusion` cells away (Chebyshev). The similarity is the cosine between their low cosine waves without the mean
    (27 numbers, as Fridrich et al. 2003 describe blocks), which brightness and contrast do not change; it is damped
    where a window has hardly more than noise. Each of the eight orientations A gives a cell one best window. A cell j
    in the 5 x 5 cells around cell i supports i's best window of A if j's best window of A lies where i's window
    shifted by A (j - i) would be, +-5 px. The match of a cell is its window with the highest sum of similarity and
    share of the 24 neighbouring cells that support it.

    Args:
        pixels: (B, 3, S, S) float32, normalised as by `model.to_pixels`; no gradient flows to them.
        valid: (B, G, G) bool, G = S / 14: cells that take part.
        exclusion: in cells.
    Returns:
        measures: (B, G, G, 13) float32: similarity of the match; the highest similarity in the other seven
            orientations; the one of the plain shift; share of the 8 and of the 24 neighbouring cells that support the
            match; its similarity and its support as standard scores within the image; exp(-d^2 / 8) with d the
            distance in cells from the match's own match back to the cell; log(1 + number of cells with the same
            orientation and shift, +-7 px); log(1 + standard deviation of the window, of 255); 1 for a plain shift;
            displacement (rows, columns) as a share of the side. All zero for cells that take no part.
        match: (B, G, G) int64: the cell under the match's middle, counted row by row.
    """
    with torch.no_grad():
        grey = _grey(pixels)
        orientations = _orientations(pixels.device)
        results = [_correlate_image(image, v, orientations, exclusion) for image, v in zip(grey, valid, strict=True)]
    measures, match = (torch.stack(parts) for parts in zip(*results, strict=True))
    return measures, match


def _grey(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) normalised pixels -> (B, S, S) grey values with a mean near 0, in units of 1 / 255."""
    deviation = torch.tensor([0.229, 0.224, 0.225], device=pixels.device) * 255
    return (pixels.float() * deviation[:, None, None]).mean(1)


def _orientations(device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The eight orientations A: signs (27,) and order (27,) of a window's waves under A, and A itself (2, 2).

    A flip of the rows changes the sign of waves of odd row order; a transpose exchanges row and column orders.
    """
    orders = _orders()
    row, column = torch.tensor(orders, device=device).T
    transposed = torch.tensor([orders.index((v, u)) for u, v in orders], device=device)
    orientations = []
    for transpose in (False, True):
        for flip_row in (1.0, -1.0):
            for flip_column in (1.0, -1.0):
                signs = flip_row**row * flip_column**column
                order = transposed if transpose else torch.arange(len(orders), device=device)
                flips = torch.diag(torch.tensor([flip_row, flip_column], device=device))
                orientations.append((signs[order], order, flips.flip(0) if transpose else flips))
    return orientations


def _orders() -> list[tuple[int, int]]:
    """Row and column order of the 27 waves that describe a window."""
    return [(u, v) for u in range(ORDERS + 1) for v in range(ORDERS + 1) if 1 <= u + v <= ORDERS]


def _waves(device: torch.device) -> Tensor:
    """(27, 1, 20, 20) float32 orthonormal cosine waves (DCT-II) without the constant one."""
    position = (torch.arange(WINDOW, device=device) + 0.5) * math.pi / WINDOW
    waves = torch.stack([torch.outer((u * position).cos(), (v * position).cos()) for u, v in _orders()])
    return (waves / waves.flatten(1).norm(dim=1)[:, None, None])[:, None]


def _correlate_image(
    grey: Tensor, valid: Tensor, orientations: list[tuple[Tensor, Tensor, Tensor]], exclusion: int
) -> tuple[Tensor, Tensor]:
    """`patch_correlation` of one image: (S, S), (G, G) -> (G, G, 13), (G, G)."""
    side, device = len(valid), grey.device
    margin = (WINDOW - PATCH) // 2  # cell c's window begins at 14 c - 3, so the image gets a margin
    padded = F.pad(grey[None, None], (margin,) * 4, mode="replicate")
    waves = _waves(device)
    cells = F.conv2d(padded, waves, stride=PATCH)[0].flatten(1).T  # (N, 27)
    windows = F.conv2d(padded, waves, stride=STRIDE)[0]  # (27, R, R)
    reach = windows.shape[1]
    windows = windows.flatten(1).T
    deviation, contrast = cells.norm(dim=1) / WINDOW, windows.norm(dim=1) / WINDOW
    floor = (NOISE * WINDOW) ** 2
    cells, windows = (v / (v.square().sum(1, keepdim=True) + floor).sqrt() for v in (cells, windows))
    at = torch.arange(side * side, device=device)
    own = torch.stack([at // side, at % side], 1) * PATCH  # (N, 2) corners of the cells' windows
    at = torch.arange(reach * reach, device=device)
    corner = torch.stack([at // reach, at % reach], 1) * STRIDE  # (R * R, 2)
    under = (corner // PATCH).clamp(max=side - 1)
    # Cells and windows that hold no more than noise all look alike: they are left out.
    active = ((deviation >= NOISE / 2) & valid.flatten()).nonzero()[:, 0]
    kept = ((contrast >= NOISE / 2) & valid[under[:, 0], under[:, 1]]).nonzero()[:, 0]
    windows, corner = windows[kept], corner[kept]
    similar = torch.zeros(len(orientations), side * side, device=device)
    found = torch.full((len(orientations), side * side, 2), math.inf, device=device)
    # Few cells at a time: cells x windows grows with the fourth power of the side, and must fit into the caches.
    for chunk in active.split(CHUNK) if len(kept) else ():
        row, column = ((own[chunk, k, None].short() - corner[:, k].short()).abs_() for k in (0, 1))
        close = torch.maximum(row, column) <= exclusion * PATCH  # (cells, windows)
        for k, (signs, order, _) in enumerate(orientations):
            products = (cells[chunk][:, order] * signs) @ windows.T
            best, index = products.masked_fill_(close, -1.0).max(1)
            similar[k, chunk], found[k, chunk] = best.clamp(min=0), corner[index].float()
            found[k, chunk[best <= 0]] = math.inf
    matrices = torch.stack([matrix for _, _, matrix in orientations])
    near, wide = _patch_support(found.unflatten(1, (side, side)), matrices)
    choice = (similar + wide).argmax(0)
    measures, match = _patch_measures(similar, found, near, wide, choice, own, matrices, valid)
    measures[..., 9] = deviation.log1p().view(side, side)
    return measures * valid[..., None], match


def _patch_support(found: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Shares (8, N) of the 8 and of the 24 neighbouring cells that support a cell's best window.

    Args:
        found: (8, G, G, 2) corner of each cell's best window in each orientation, inf for none.
        matrices: (8, 2, 2) the orientations.
    """
    radius, side = SUPPORT_RADIUS, found.shape[1]
    padded = F.pad(found, (0, 0, radius, radius, radius, radius), value=math.inf)
    own = torch.where(found.isfinite(), found, -1e6)
    near, wide = torch.zeros(2, *found.shape[:3], device=found.device)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy == dx == 0:
                continue
            step = PATCH * (matrices @ torch.tensor([float(dy), float(dx)], device=found.device))  # (8, 2)
            theirs = padded[:, radius + dy : radius + dy + side, radius + dx : radius + dx + side]
            agrees = (theirs - own - step[:, None, None]).abs().amax(3) <= TOLERANCE
            wide += agrees
            if max(abs(dy), abs(dx)) == 1:
                near += agrees
    return (near / 8).flatten(1), (wide / 24).flatten(1)


def _patch_measures(
    similar: Tensor,
    found: Tensor,
    near: Tensor,
    wide: Tensor,
    choice: Tensor,
    own: Tensor,
    matrices: Tensor,
    valid: Tensor,
) -> tuple[Tensor, Tensor]:
    """Measures (G, G, 13), all but the window's deviation, and match (G, G), see `patch_correlation`.

    Args:
        similar, near, wide: (8, N) similarity and support of the best window of each cell in each orientation.
        found: (8, N, 2) their corners. choice: (N,) the chosen orientation. own: (N, 2) corners of the cells' windows.
        matrices: (8, 2, 2) the orientations. valid: (G, G) bool.
    """
    side, size = len(valid), len(valid) * PATCH
    pick = choice[None]
    best, near, wide = (values.gather(0, pick)[0] for values in (similar, near, wide))
    place = found.gather(0, pick[..., None].expand(-1, -1, 2))[0]  # (N, 2)
    known = place.isfinite().all(1)
    place = torch.where(known[:, None], place, own.float())
    others = similar.scatter(0, pick, -1.0).amax(0).clamp(min=0)
    middle = ((place + PATCH // 2) / PATCH).long().clamp(0, side - 1)
    match = middle[:, 0] * side + middle[:, 1]
    back = (place[match] - own).norm(dim=1) / PATCH
    returned = torch.exp(-back.square() / 8) * known * known[match]
    # A cell at p was copied to A p + t: all cells of a copy share A and t.
    shift = place - (matrices[choice] @ own.float()[..., None])[..., 0]  # t, between -2 S and 2 S
    bins = (shift / (PATCH / 2)).round().long() + 4 * side + 1
    width = 8 * side + 4
    index = (choice * width + bins[:, 0]) * width + bins[:, 1]
    counts = torch.zeros(len(matrices) * width * width, device=own.device)
    counts.scatter_add_(0, index, (known & valid.flatten()).float())
    counts = 9 * F.avg_pool2d(counts.view(len(matrices), 1, width, width), 3, stride=1, padding=1)
    votes = counts.flatten()[index].log1p() * known
    grid = (1, side, side)
    scores = [_standard_score(values.view(grid), valid[None])[0].flatten() for values in (best, wide)]
    offset = (place - own) / size
    columns = [best, others, similar[0], near, wide, *scores, returned, votes, torch.zeros_like(best)]
    columns += [(choice == 0).float() * known, offset[:, 0], offset[:, 1]]
    return torch.stack(columns, 1).view(side, side, -1), match.view(side, side)


def _standard_score(values: Tensor, valid: Tensor) -> Tensor:
    """(B, G_h, G_w) values as standard scores over the image's cells; the deviation is taken as 0.02 at least."""
    count = valid.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (values - (values * valid).sum((1, 2), keepdim=True) / count) * valid
    return centred / (centred.square().sum((1, 2), keepdim=True) / count).sqrt().clamp(min=0.02)
