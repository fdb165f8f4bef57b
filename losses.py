"""The three losses that make copied regions cluster, their weighted sum, and the loss of a backbone's pretraining.

    loss = ForgeryLoss()
    total, terms = loss(embeddings, labels, num_labels)   # (B, N, D) unit vectors, (B, N) int64

Each cell has a label: 0 background, 1..K duplicated content, -1 padding. The three losses are batched over images and
written with sums over the cells of each label (a matrix product with the one-hot labels), so that no N x N mask of
positives is made and no Python loop goes over images or labels. All are computed in float32, also inside autocast.

An image's losses are means over its own labels, pairs of labels or anchors; the batch's loss is the mean over images.
A loss that is not defined for an image (no anchor with a positive, no pair of labels) is zero there and still part of
the graph, so that every rank of a DDP job has a gradient. This file imports nothing else of the project.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ForgeryLoss(nn.Module):
    """Weighted sum `w_c * SupCon + w_s * separation + w_u * uniformity`, averaged over the images of a batch."""

    def __init__(
        self,
        supcon_weight: float = 1.2,
        separation_weight: float = 1.0,
        uniformity_weight: float = 0.5,
        class_balanced: bool = False,
        temperature: float = 0.07,
        separation_margin: float = 2.0,
        uniformity_margin: float = 0.1,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        self.weights = {"supcon": supcon_weight, "separation": separation_weight, "uniformity": uniformity_weight}
        self.class_balanced = class_balanced
        self.temperature = temperature
        self.separation_margin = separation_margin
        self.uniformity_margin = uniformity_margin

    def forward(
        self, embeddings: Tensor, labels: Tensor, num_labels: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            embeddings: (B, N, D) or (B, G, G, D), unit vectors, any float type.
            labels: (B, N) or (B, G, G) int64: -1 padding, 0 background, 1..num_labels - 1 instances.
            num_labels: 1 + the largest label. Give it where the labels lie on a GPU: to compute it here would wait
                for the device.
        Returns:
            The loss, a float32 scalar, and its unweighted terms `supcon`, `separation`, `uniformity` (detached).
        Raises:
            ValueError: the shapes do not belong together.
        """
        if embeddings.shape[:-1] != labels.shape:
            raise ValueError(f"embeddings {tuple(embeddings.shape)} do not belong to labels {tuple(labels.shape)}")
        if num_labels is None:
            num_labels = max(1, int(labels.max()) + 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            z = embeddings.float().flatten(1, -2)  # (B, N, D)
            members = one_hot(labels.flatten(1), num_labels)  # (B, N, K) float32, a padding cell's row is zero
            counts = members.sum(1)  # (B, K)
            sums = members.transpose(1, 2) @ z  # (B, K, D)
            squares = torch.linalg.vecdot(z, z)  # (B, N): 1 for unit vectors, but its gradient is part of the loss
            per_image = {
                "supcon": supcon(z, squares, members, counts, sums, self.temperature, self.class_balanced),
                "separation": separation(counts, sums, self.separation_margin),
                "uniformity": uniformity(squares, members, counts, sums, self.uniformity_margin),
            }  # each (B,)
            terms = {name: values.mean() for name, values in per_image.items()}
            total = sum(self.weights[name] * value for name, value in terms.items())
        return total, {name: value.detach() for name, value in terms.items()}


def one_hot(labels: Tensor, num_labels: int) -> Tensor:
    """(B, N) int64 labels -> (B, N, num_labels) float32; the row of a padding cell (-1) is zero."""
    return F.one_hot(labels + 1, num_labels + 1)[..., 1:].float()


def supcon(
    z: Tensor,
    squares: Tensor,
    members: Tensor,
    counts: Tensor,
    sums: Tensor,
    temperature: float,
    class_balanced: bool = False,
) -> Tensor:
    """Supervised contrastive loss of each image (Khosla et al. 2020, eq. 2, L_out).

    For an anchor i, with P(i) the other cells of its label (its positives) and A(i) all other cells of the image:

        l_i = -1 / |P(i)| sum_{p in P(i)} z_i . z_p / t  +  log sum_{a in A(i)} exp(z_i . z_a / t)

    The first sum needs no pairs: it is z_i . (S_y - z_i), with S_y the sum of the vectors of i's label y.
    Only the log-sum-exp needs the N x N similarities.

    Args:
        z: (B, N, D) float32 unit vectors. squares: (B, N), |z|^2. members: (B, N, K) one-hot. counts: (B, K), cells
            of each label. sums: (B, K, D), their vectors' sum. temperature: t.
        class_balanced: every label has the same weight, however few its cells: in a forgery the background has 97 %
            of them.
    Returns:
        (B,) float32: mean of l_i over the anchors that have a positive; with `class_balanced` the mean over labels of
        the means of l_i over their anchors; 0 where no anchor has a positive.
    """
    valid = members.sum(2)  # (B, N): 1 for a cell, 0 for padding
    own = (members @ counts.unsqueeze(2)).squeeze(2)  # (B, N): cells of the anchor's label
    anchor = valid * (own > 1)
    weight = anchor / own.clamp(min=1) if class_balanced else anchor
    log_sum = _LogSumExpOthers.apply(z, valid, temperature)  # (B, N)
    to_positives = ((z @ sums.transpose(1, 2) * members).sum(2) - squares) / temperature  # (B, N)
    loss = log_sum - to_positives / (own - 1).clamp(min=1)
    # `where` instead of a product: an image with a single cell has a meaningless log_sum of -1e38.
    return (torch.where(anchor > 0, loss, 0.0) * weight).sum(1) / weight.sum(1).clamp(min=1)


class _LogSumExpOthers(torch.autograd.Function):
    """log sum_{a != i} exp(z_i . z_a / t) for each cell i of each image, without padding cells.

    The N x N matrix is most of the loss's cost, so its gradient is written by hand: one such matrix is made and kept,
    where autograd makes four.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, valid: Tensor, temperature: float) -> Tensor:
        # Left out of the sums: padding cells, and on the diagonal each anchor itself.
        excluded = torch.where(valid == 0, torch.finfo(z.dtype).min, 0.0).unsqueeze(1)  # (B, 1, N)
        weights = torch.baddbmm(excluded, z, z.transpose(1, 2), alpha=1 / temperature)  # (B, N, N), exp in place
        weights.diagonal(dim1=1, dim2=2).fill_(torch.finfo(z.dtype).min)
        largest = weights.amax(2, keepdim=True)
        total = weights.sub_(largest).exp_().sum(2)
        ctx.save_for_backward(z, weights, total)
        ctx.temperature = temperature
        return largest.squeeze(2) + total.log()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, weights, total = ctx.saved_tensors
        scale = (gradient / (total * ctx.temperature)).unsqueeze(2)  # includes the softmax's denominator
        # Each pair is in the matrix twice, with either cell as the anchor.
        return torch.baddbmm(scale * (weights @ z), weights.transpose(1, 2), scale * z), None, None


def uniformity(squares: Tensor, members: Tensor, counts: Tensor, sums: Tensor, margin: float) -> Tensor:
    """Spread of the labels' cells around their centroids, of each image: mean over labels of max(0, msd - margin).

    msd is the mean squared Euclidean distance of a label's cells to their mean vector c, which is not normalised:
    mean |z|^2 - |c|^2. An authentic image has one label, the background with all its cells. (Wang and Isola 2020 use
    the word uniformity for the opposite; this loss asks for compact labels.)

    Args and returns: as `supcon`.
    """
    present = (counts > 0).float()
    safe = counts.clamp(min=1)
    mean_squares = (squares.unsqueeze(1) @ members).squeeze(1) / safe  # (B, K)
    spread = mean_squares - (sums / safe.unsqueeze(2)).square().sum(2)
    return ((spread - margin).clamp(min=0) * present).sum(1) / present.sum(1).clamp(min=1)


def separation(counts: Tensor, sums: Tensor, margin: float) -> Tensor:
    """Nearness of the labels' centroids, of each image: mean over pairs of labels of max(0, margin - distance).

    Centroids are mean vectors, inside the unit ball: with the method's margin of 2, its diameter, the loss of a pair
    is never zero.

    Args and returns: as `supcon`; 0 for an image with fewer than two labels.
    """
    centroids = sums / counts.clamp(min=1).unsqueeze(2)  # (B, K, D)
    square = centroids.square().sum(2)
    distance = square.unsqueeze(2) + square.unsqueeze(1) - 2 * centroids @ centroids.transpose(1, 2)
    # The square root's slope is infinite at 0: a minimum of 1e-12 keeps gradients finite for equal centroids.
    distance = distance.clamp(min=1e-12).sqrt()
    present = counts > 0
    pairs = (present.unsqueeze(2) & present.unsqueeze(1)).float().triu(1)
    return ((margin - distance).clamp(min=0) * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def correspondence_loss(
    z: Tensor, places: Tensor, weights: Tensor, temperature: Tensor | float, exclusion: int = 2
) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al. 2018) of cells that look for their place in the other view of an image.

    Args:
        z: (B, 2, N, D) float32 unit vectors of both views, N = G * G cells each.
        places: (B, 2, N, 4) int64, the four cells of the other view around a cell's place.
        weights: (B, 2, N, 4) float32, the bilinear weights of the four, with a sum of 1; all 0 where a cell is no
            anchor.
        temperature: divides the similarities.
        exclusion: cells of the own view this near (Chebyshev) are no contrast: they show partly the same content.
    Returns:
        Loss: mean over the anchors of both views of the weighted sum over the four cells of -log p, where p is a
        softmax of similarity / temperature over all cells of the other view and the distant cells of the own view.
        Recall: share of the anchors whose most similar cell is one of the four. Both float32 scalars; 0 without any
        anchor.
    """
    grid = math.isqrt(z.shape[2])
    row, column = torch.arange(z.shape[2]) // grid, torch.arange(z.shape[2]) % grid
    near = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()) <= exclusion
    across = z @ z.flip(1).transpose(2, 3) / temperature  # (B, 2, N, N)
    within = (z @ z.transpose(2, 3) / temperature).masked_fill(near, -math.inf)
    both = torch.cat([across, within], 3)
    log_probability = across.gather(3, places) - both.logsumexp(3, keepdim=True)
    anchor = weights.sum(3) > 0
    count = anchor.sum().clamp(min=1)
    hit = (both.argmax(3, keepdim=True) == places).any(3) & anchor
    return -(weights * log_probability).sum() / count, hit.sum() / count
