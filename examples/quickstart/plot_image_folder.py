"""
A folder of pictures, and a file that must go
=============================================

Pictures lie in a folder with a subfolder for each class. Somebody asks for one to be removed. On the
command line, this is all::

    fastntk fit pictures --out state
    fastntk unlearn state pictures/7/0042.png
    fastntk report state --html report.html

and here is the same in Python.
"""

# %%
# Digits as files; the pictures are read when they are needed, never all at once.
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, read_pictures
from fastntk_sk.evaluation import ChangedPredictionsDisplay

folder = Path(tempfile.mkdtemp())
images, digits = load_digits(return_X_y=True)
for i, (image, digit) in enumerate(zip(images[:200], digits[:200], strict=True)):
    path = folder / str(digit) / f"{i:04}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((image.reshape(8, 8) * 255 / 16).astype(np.uint8)).save(path)

# %%
# Ten of them lie in the wrong folder.
wrong = sorted(folder.rglob("*.png"))[5::20]
for path in wrong:
    target = folder / str((int(path.parent.name) + 3) % 10) / path.name
    path.rename(target)
pictures = read_pictures(folder)
clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, n_components=1024, random_state=0)
clf.fit(pictures.paths, pictures.labels)

# %%
# They are found by content: no other picture is needed, and none is read.
moved = [next(folder.rglob(path.name)) for path in wrong]
before = deepcopy(clf)
clf.unlearn([str(path) for path in moved])
print(clf.receipts_[-1]["exactness"], "-", clf.n_samples_learned_, "pictures are left")

# %%
# The pictures that the deletion made the model see anew.
display = ChangedPredictionsDisplay.from_estimators(before, clf, [str(p) for p in moved], n_images=8)
display.figure_.suptitle("Forgotten: what they were taken for, before → after, and by how much")
display.figure_.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
