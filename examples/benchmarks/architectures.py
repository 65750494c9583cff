"""A sweep over architectures of timm: each is fitted, forgets two rows, and is compared with a refit.

Random weights, twelve pictures of noise in three classes, at the smallest size that the architecture
takes. Every line of architectures.csv is one network and one subset, so that a run goes on where it was;
a failure is a line with the text of its error. ``--tables`` writes a summary into the page.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from _common import COMMIT, PAGES, put, stamp, table

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import outline
from fastntk_sk.evaluation import algebraic_gap
from fastntk_sk.exceptions import FastNTKError

RESULTS = Path(__file__).with_suffix(".csv")
FIELDS = ("name", "channels", "weights", "side", "trainable", "gap", "seconds", "error", "commit")
SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 384)
SUBSETS = ("auto", "norm")
ROWS, CLASSES, FORGOTTEN, COMPONENTS, BATCH = 12, 3, 2, 16, 4
COLOURS = """
    test_byobnet test_coatnet test_convnext test_convnext2 test_convnext3 test_efficientnet
    test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln test_mambaout test_maxvit
    test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos bat_resnext26ts
    botnet26t_256 cait_xxs24_224 coatnet_pico_rw_224 convit_tiny convnext_atto convnextv2_atto
    cs3darknet_s csatv2 cspnext_tiny darknet17 deit3_small_patch16_224
    deit_tiny_distilled_patch16_224 densenet121 dla46_c dpn48b eca_botnext26ts_256 edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_slim eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100
    flexivit_small gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmlp_ti16_224
    hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto lambda_resnet26t lcnet_035
    levit_128s levit_conv_128s mambaout_femto mixer_s32_224 mnasnet_050 mobilenet_edgetpu_v2_xs
    mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobileone_s0 mobilevit_xxs
    mobilevitv2_050 nest_tiny nf_resnet26 pit_ti_224 pit_ti_distilled_224 poolformer_s12 pvt_v2_b0
    regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1 resmlp_12_224 resnest14d
    resnet10t resnet18 resnext26ts rexnet_100 seresnet18 shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 tf_efficientnet_lite0 tinynet_e tiny_vit_5m_224
    tnt_s_patch16_224 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 xcit_nano_12_p16_224
    beit_base_patch16_224 naflexvit_base_patch16_gap vgg11_bn nextvit_small twins_pcpvt_small
    twins_svt_small convmixer_768_32 nfnet_l0 sequencer2d_s tresnet_m xception41 inception_v3
    mobilenetv4_hybrid_medium_075 focalnet_tiny_srf davit_tiny rdnet_tiny hiera_tiny_224
    hieradet_small halonet26t coat_lite_tiny caformer_s18 convformer_s18 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 mvitv2_tiny cspresnet50 res2net50_14w_8s selecsls42 volo_d1_224
    vitamin_small_224 crossvit_9_240 maxvit_nano_rw_256
"""
GREY = """
    convnext_atto densenet121 efficientnet_b0 mobilenetv3_small_050 regnetx_002 resnet18
    swin_tiny_patch4_window7_224 test_convnext test_mambaout test_maxvit test_resnet test_vit
    vit_tiny_patch16_224
"""


def measured() -> dict[tuple[str, ...], dict[str, str]]:
    """Return the lines of architectures.csv, by name, channels and subset."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        return {(row["name"], row["channels"], row["trainable"]): row for row in csv.DictReader(file)}


def smallest(name: str) -> int | None:
    """Return the side of the smallest pictures that a network takes; None for its own size alone."""
    for side in SIDES:
        try:
            outline(name, (side, side))
        except Exception:  # timm raises anything for a size that does not fit
            continue
        return side
    return None


def backbone(name: str, channels: int, side: int | None) -> object:
    """Return the name, or a module for pictures in grey."""
    if channels == 3:
        return name
    config = timm.get_pretrained_cfg(name)
    sized = {"img_size": side} if config.fixed_input_size and side else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, in_chans=channels, **sized)


def measure(name: str, channels: int, side: int | None, trainable: str) -> dict[str, object]:
    """Return one line: the gap between a deletion and a refit, or the text of the error."""
    draws = np.random.default_rng(0)
    y = np.arange(ROWS) % CLASSES
    brightest = 100 + 70 * y[:, None, None, None]
    X = draws.integers(brightest, size=(ROWS, 48, 48, 3)).astype(np.uint8)
    found: dict[str, object] = {"gap": "", "error": "", "weights": ""}
    start = time.perf_counter()
    try:
        clf = FastNTKClassifier(
            backbone(name, channels, side),
            trainable=trainable,
            pretrained=False,
            image_size=side,
            n_components=COMPONENTS,
            batch_size=BATCH,
            random_state=0,
        )
        clf.fit(X, y)
        found["weights"] = sum(p.numel() for p in clf._adapter.model.backbone.net.parameters())
        clf.unlearn(X[:FORGOTTEN])
        refit = FastNTKClassifier(**clf.get_params()).fit(X[FORGOTTEN:], y[FORGOTTEN:])
        found["gap"] = f"{algebraic_gap(clf, refit):.1e}"
        assert clf.predict(X).shape == (ROWS,)
    except FastNTKError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    except Exception as error:  # what the library should have caught
        found["error"] = f"not of the library: {type(error).__name__}: {error}"
    return found | {"seconds": f"{time.perf_counter() - start:.1f}"}


def summary(lines: list[dict[str, str]]) -> str:
    """Return the table of the page: how many networks, and the largest gap, by subset and channels."""
    rows: list[list[object]] = []
    for trainable in SUBSETS:
        for channels in ("3", "1"):
            chosen = [x for x in lines if (x["trainable"], x["channels"]) == (trainable, channels)]
            gaps = [float(x["gap"]) for x in chosen if x["gap"]]
            errors = Counter(x["error"].partition(":")[0] for x in chosen if x["error"])
            told = ", ".join(f"{n} {kind}" for kind, n in errors.items()) or "none"
            rows.append([trainable, channels, len(chosen), f"{max(gaps, default=0):.1e}", told])
    header = ["trainable", "channels", "architectures", "largest difference to a refit", "errors"]
    failed = [[x["name"], x["trainable"], x["error"].splitlines()[0][:160]] for x in lines if x["error"]]
    told = table(["architecture", "trainable", "error"], failed) if failed else ""
    return f"{table(header, rows)}\n\n{told}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="what to measure again")
    parser.add_argument("--tables", action="store_true", help="write what was measured to the page")
    args = parser.parse_args()
    lines = measured()
    if args.tables:
        text = f"{summary(list(lines.values()))}\n\n{stamp('benchmarks/architectures.py')}"
        print(text)
        put(PAGES[0], "architectures", text)
        return
    networks = [(name, 3) for name in COLOURS.split()] + [(name, 1) for name in GREY.split()]
    sides: dict[str, int | None] = {}
    for trainable, (name, channels) in product(SUBSETS, networks):
        key = (name, str(channels), trainable)
        if (args.names and name not in args.names) or (key in lines and not args.names):
            continue
        if name not in sides:
            sides[name] = smallest(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measure(name, channels, sides[name], trainable)
        line = found | {"name": name, "channels": channels, "trainable": trainable}
        line |= {"side": sides[name] or "", "commit": COMMIT}
        lines[key] = {field: str(line[field]) for field in FIELDS}
        print(*lines[key].values(), flush=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(lines.values())
        gc.collect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
