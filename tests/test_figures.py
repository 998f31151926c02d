"""Figures show the numbers they were given, the same ones as the same file."""

import numpy as np
from PIL import Image

from fada_jax.reporting import figures

ROWS = {"source only": {"road": 50.0, "train": None}, "F-Adv": {"road": 70.0, "train": 5.0}}


def heights(figure):
    return [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_bars_of_every_class_and_row():
    figure = figures.iou_bars(ROWS)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["road", "train"]
    np.testing.assert_array_equal(heights(figure), [[50, np.nan], [70, 5]])
    assert legend(figure) == ["source only", "F-Adv"]
    lefts = [bar.get_x() for bars in figure.axes[0].containers for bar in bars]
    assert len(set(lefts)) == 4  # Side by side, not on top of each other.


def test_the_legend_of_figure_4_has_the_means():
    rows = {name: {"ccd": values, "mean": mean} for (name, values), mean in zip(ROWS.items(), (2.5, 1.1), strict=True)}
    figure = figures.ccd_bars(rows)
    assert legend(figure) == ["source only (mean 2.50)", "F-Adv (mean 1.10)"]
    np.testing.assert_array_equal(heights(figure), [[50, np.nan], [70, 5]])


def test_confusion_is_the_share_of_each_label():
    figure = figures.confusion_matrix([[3, 1, 0], [0, 0, 0], [2, 2, 4]], ("a", "b", "c"))
    shares = np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(shares, [[0.75, 0.25, 0], [np.nan] * 3, [0.25, 0.25, 0.5]])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_curves_of_every_loss(tmp_path):
    lines = [{"step": 2, "loss_seg": 3.0, "lr": 1.0}, {"step": 4, "loss_seg": 2.0, "loss_d": 0.5, "lr": 1.0}]
    figure = figures.training_curves("adaptation", lines)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn == {"loss_seg": [[2, 3], [4, 2]], "loss_d": [[4, 0.5]]}
    assert figures.to_svg(figure) == figures.to_svg(figures.training_curves("adaptation", lines))
    figures.save(figure, tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as image:
        assert image.format == "PNG" and image.width == 480
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["curves.png"]
