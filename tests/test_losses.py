"""Each loss against a slow loop over images, labels and cells."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losses import ForgeryLoss, correspondence_loss


def reference(z, labels, temperature=0.07, separation_margin=2.0, uniformity_margin=0.1, class_balanced=False):
    """(supcon, separation, uniformity) of one image: z (N, D), labels (N,), by loops in float64."""
    keep = [i for i in range(len(labels)) if labels[i] >= 0]
    z, labels = z.double()[keep], labels[keep].tolist()
    anchors, of_label = [], {}
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        if not positives:
            continue
        denominator = sum(torch.exp(z[i] @ z[a] / temperature) for a in range(len(labels)) if a != i)
        terms = [-torch.log(torch.exp(z[i] @ z[p] / temperature) / denominator) for p in positives]
        anchors.append(sum(terms) / len(positives))
        of_label.setdefault(labels[i], []).append(anchors[-1])
    if class_balanced:
        anchors = [sum(values) / len(values) for values in of_label.values()]
    supcon = sum(anchors) / len(anchors) if anchors else z.sum() * 0
    groups = [z[[i for i in range(len(labels)) if labels[i] == k]] for k in sorted(set(labels))]
    centroids = [group.mean(0) for group in groups]
    spreads = [
        torch.clamp(sum((v - c).square().sum() for v in group) / len(group) - uniformity_margin, min=0)
        for group, c in zip(groups, centroids, strict=True)
    ]
    uniformity = sum(spreads) / len(spreads) if spreads else z.sum() * 0
    pairs = [
        torch.clamp(separation_margin - (centroids[a] - centroids[b]).norm(), min=0)
        for a in range(len(centroids))
        for b in range(a)
    ]
    separation = sum(pairs) / len(pairs) if pairs else z.sum() * 0
    return supcon, separation, uniformity


def image(kind, n=60):
    labels = torch.zeros(n, dtype=torch.int64)
    if kind == "one instance":
        labels[5:20] = 1
    elif kind == "one cell per instance":
        labels[7], labels[30] = 1, 2
    elif kind == "padding":
        labels[3:12], labels[40:] = 1, -1
    elif kind == "ten instances":
        labels = torch.arange(n) % 11
    elif kind == "all padding":
        labels[:] = -1
    elif kind == "one cell":
        labels[1:] = -1
    elif kind == "label numbers with a gap":
        labels[:9] = 4
    return labels


KINDS = [
    "authentic", "one instance", "one cell per instance", "padding", "ten instances", "all padding", "one cell",
    "label numbers with a gap",
]  # fmt: skip


def unit(*shape, seed=0):
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


@pytest.mark.parametrize("class_balanced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_the_loop(kind, class_balanced):
    """Each loss and the gradient of their sum, for every kind of image and both ways to weight labels."""
    labels = image(kind)
    z = unit(1, 60, 16, seed=3).requires_grad_()
    total, terms = ForgeryLoss(class_balanced=class_balanced)(z, labels[None])
    (gradient,) = torch.autograd.grad(total, z)
    supcon, separation, uniformity = reference(z[0], labels, class_balanced=class_balanced)
    assert terms["supcon"].item() == pytest.approx(supcon.item(), abs=1e-5)
    assert terms["separation"].item() == pytest.approx(separation.item(), abs=1e-5)
    assert terms["uniformity"].item() == pytest.approx(uniformity.item(), abs=1e-5)
    (expected,) = torch.autograd.grad(1.2 * supcon + separation + 0.5 * uniformity, z)
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert torch.isfinite(gradient).all()


def test_batch_is_mean_over_images():
    """Images of a batch do not touch each other."""
    labels = torch.stack([image(kind) for kind in KINDS])
    z = unit(len(KINDS), 60, 16)
    total, _ = ForgeryLoss()(z, labels, num_labels=11)
    alone = [ForgeryLoss()(z[i : i + 1], labels[i : i + 1])[0] for i in range(len(KINDS))]
    assert total.item() == pytest.approx(float(sum(alone)) / len(KINDS), abs=1e-5)


def test_values_by_hand():
    """Two tiny images whose losses can be worked out on paper."""
    # Two labels of two equal cells, at right angles: distance of the centroids sqrt(2), no spread;
    # each anchor's positive has similarity 1, its two negatives 0: -log(e^(1/t) / (e^(1/t) + 2)), t = 1.
    z = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    _, terms = ForgeryLoss(temperature=1.0)(z, torch.tensor([[0, 0, 1, 1]]))
    assert terms["supcon"].item() == pytest.approx(-math.log(math.e / (math.e + 2)), abs=1e-6)
    assert terms["separation"].item() == pytest.approx(2 - math.sqrt(2), abs=1e-6)
    assert terms["uniformity"].item() == pytest.approx(0, abs=1e-6)
    # One label with two opposite cells: centroid 0, mean squared distance 1, hinge at 0.1.
    _, terms = ForgeryLoss()(torch.tensor([[[1.0, 0], [-1, 0]]]), torch.tensor([[0, 0]]))
    assert terms["uniformity"].item() == pytest.approx(0.9, abs=1e-6)


def test_grid_shape_and_zero_margin():
    """Grids and lists of cells give the same; a margin of 0 switches separation off."""
    z, labels = unit(2, 6, 6, 8), torch.zeros(2, 6, 6, dtype=torch.int64)
    labels[:, 0] = 1
    flat = ForgeryLoss()(z.flatten(1, 2), labels.flatten(1))[0]
    assert ForgeryLoss()(z, labels)[0].item() == pytest.approx(flat.item(), abs=1e-6)
    assert ForgeryLoss(separation_margin=0.0)(z, labels)[1]["separation"].item() == 0


def test_float32_inside_autocast():
    """Mixed precision does not reach the losses."""
    z, labels = unit(2, 60, 16), torch.stack([image("one instance")] * 2)
    plain = ForgeryLoss()(z, labels)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ForgeryLoss()(z, labels)[0]
    assert mixed.dtype == torch.float32 and mixed.item() == plain.item()


def test_mismatched_shapes_are_refused():
    """Embeddings and labels of different numbers of cells."""
    with pytest.raises(ValueError, match="do not belong"):
        ForgeryLoss()(unit(2, 60, 16), torch.zeros(2, 59, dtype=torch.int64))


def test_correspondence_loss_equals_the_loop():
    """Loss and recall of pretraining against a loop over cells, in two images with two views each."""
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(2, 2, 36, 8, generator=generator), dim=-1)
    places = torch.randint(0, 36, (2, 2, 36, 4), generator=generator)
    weights = torch.rand(2, 2, 36, 4, generator=generator) * (torch.rand(2, 2, 36, 1, generator=generator) < 0.4)
    loss, recall = correspondence_loss(z, places, weights, 0.3)
    losses, hits = [], []
    for b, a, n in np.ndindex(2, 2, 36):
        if not weights[b, a, n].sum():
            continue
        across = {m: float(z[b, a, n] @ z[b, 1 - a, m]) / 0.3 for m in range(36)}
        far = [m for m in range(36) if max(abs(m // 6 - n // 6), abs(m % 6 - n % 6)) > 2]
        within = {m: float(z[b, a, n] @ z[b, a, m]) / 0.3 for m in far}
        total = math.log(sum(map(math.exp, [*across.values(), *within.values()])))
        four = zip(places[b, a, n].tolist(), weights[b, a, n].tolist(), strict=True)
        losses.append(sum(weight * (total - across[place]) for place, weight in four))
        best = max(across, key=across.get)
        hits.append(best in places[b, a, n].tolist() and across[best] >= max(within.values(), default=-9))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert recall.item() == pytest.approx(sum(hits) / len(hits))
    none, _ = correspondence_loss(z, places, weights * 0, 0.3)
    assert none.item() == 0
