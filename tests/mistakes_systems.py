"""Mistakes with the systems beside FADA, as rows of tests/test_bad_inputs.py."""

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"
SIZES = ("--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)")
LARGE = ("--config.source.size=(48,32)", "--config.target.size=(48,32)", "--config.eval.size=(48,32)")
TRAIN = ("-m", "fada_jax.train", "--config.data_dir={data}", "--workdir={new}/w")
EVALUATE = ("-m", "fada_jax.evaluate", "--workdir={good}", "--data_dir={data}")
ABLATE = ("scripts/ablate.py", "--config.data_dir={data}", "--workdir={new}/w", *SIZES)
CCD = ("scripts/ccd.py", "--output={new}/ccd")


def adapted(method, *overrides, sizes=LARGE):
    return *TRAIN, f"{CONFIG},stage=adaptation,method={method}", *sizes, *overrides


ROWS = {
    "systems beside FADA": {
        "system that nobody knows": (adapted("adaptsegnet2"), 2, "method='adaptsegnet2'"),
        "option of another system": (adapted("clan", "--config.options.gan=ls"), 2, "gan"),
        "option that it cannot have": (adapted("adaptsegnet", "--config.options.gan=wgan"), 1, "config.options.gan='wgan' must be one of bce, ls"),
        "option below nothing": (adapted("clan", "--config.options.local=-1.0"), 1, "config.options.local=-1.0 must be"),
        "classifiers of another system": (adapted("fada", "--config.model.heads=two"), 1, "config.model.heads='two'"),
        "auxiliary classifier without a layer3": (
            (*TRAIN, f"{CONFIG.partition(':')[0]}:stage=adaptation,method=adaptsegnet_multi,backbone=vgg16"), 1,
            "config.model.heads='levels' needs a ResNet",
        ),
        "swap with a target that is not read": (adapted("control", "--config.fourier_beta=0.01"), 1, "reads no target"),
        "images that patches do not fit in": (adapted("adaptsegnet", sizes=SIZES), 1, "needs images of at least 32 pixels"),
        "release that there is none of": (
            (*TRAIN, "--config=configs/gta5_to_cityscapes.py:method=fcn_wild,fidelity=released"), 2, "fidelity=released",
        ),
        "release in miniature": ((*TRAIN, f"{CONFIG},method=clan,fidelity=released"), 2, "fidelity=released"),
        "ensemble of other classes": ((*EVALUATE, "--ensemble={five}"), 1, "class set"),
        "ensemble with a checkpoint by number": ((*EVALUATE, "--ensemble={good}", "--checkpoint=3"), 1, "leave out --checkpo"),
        "row of systems that is none": ((*ABLATE, CONFIG, "--table=systems", "--rows=clan,nope"), 1, "'nope' is none of"),
        "rows of another table": ((*ABLATE, CONFIG, "--table=lambda", "--rows=clan"), 1, "--table=lambda is scored as a w"),
        "lambda of a system without one": ((*ABLATE, f"{CONFIG},method=control", "--table=lambda"), 1, "has nothing to abl"),
        "system in a stage that is not its own": (adapted("cbst"), 1, "method=cbst is trained in stage=self_training"),
        "self-training without a teacher": (
            (*TRAIN, f"{CONFIG},stage=self_training,method=cbst", *SIZES), 1, "config.teacher_from is empty",
        ),
        "curriculum without a teacher": (
            (*TRAIN, f"{CONFIG},stage=curriculum,method=cda", *SIZES), 1, "config.teacher_from is empty",
        ),
        "self-training that weighs nothing": (
            (*TRAIN, f"{CONFIG},stage=self_training,method=cbst", "--config.lambda_adv=0.0", *SIZES), 1,
            "method=control is trained in stage=adaptation",
        ),
        "portions of a system without rounds": ((*ABLATE, f"{CONFIG},method=clan", "--table=portion"), 1, "has no rounds"),
        "images that translators cannot halve": (
            (*TRAIN, f"{CONFIG},stage=translation", "--config.source.size=(50,32)"), 1, "multiples of 4 pixels each",
        ),
        "translation by a segmenter": (
            ("scripts/translate_dataset.py", "--workdir={good}", "--data_dir={data}", "--name=painted"), 1, "not image translators",
        ),
        "class centres of a workdir without seeds": (
            (*CCD, "--workdir={good}", "--data_dir={data}", "--systems=source,clan"), 1, "holds no seed",
        ),
        "benchmark of a system twice": (("scripts/benchmark.py", "step", "--methods=clan,clan"), 1, "--methods=clan,clan"),
        "benchmark of another system beside PyTorch": (
            ("scripts/benchmark.py", "step", "--methods=clan", "--compare=torch"), 1, "--compare=torch: PyTorch's side is",
        ),
    },
}  # fmt: skip


def make(places):
    """Nothing of its own: others' workdirs serve."""
    return {}
