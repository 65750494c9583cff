"""
A deletion request, from start to end
=====================================

Rows are learned with the id of the person that they are about. A request names a person; the state
on disk forgets, keeps a receipt, and is verified.
"""

# %%
import secrets
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.evaluation import ForgettingTimelineDisplay

X, y = load_digits(return_X_y=True)
persons = np.random.default_rng(0).integers(0, 120, len(X))
folder, key = Path(tempfile.mkdtemp()), secrets.token_bytes(32)
file = folder / "clinic.fastntk"

# %%
# Learn, and keep an encrypted state. The ids leave only keyed digests behind.
clf = FastNTKClassifier(n_components=128, random_state=0)
clf.fit(X, y, sample_ids=[f"person {i}" for i in persons])
clf.save(file, key=key)


# %%
# A request comes. First a dry run, then the deletion; the file changes in one transaction, and nobody
# else can write to it meanwhile.
def honour(person):
    rows = np.flatnonzero(persons == person)
    ids = [f"person {person}"] * len(rows)
    with FastNTKClassifier.open(file, key=key) as clf:
        report = clf.can_unlearn(X[rows], sample_ids=ids)
        assert report["possible"], report["reason"]
        clf.unlearn(X[rows], sample_ids=ids)
    return clf


for person in (7, 42, 99, 3):
    clf = honour(person)
    receipt = clf.receipts_[-1]
    print(f"person {person}: {receipt['n_rows']} rows, {receipt['exactness']}")

# %%
# Asked again, the ledger does not know the rows any more: no digest of them is kept.
rows = np.flatnonzero(persons == 7)
print(clf.can_unlearn(X[rows])["reason"][:80])

# %%
# Evidence for whoever audits: a chain of receipts. Its end stands in the published adapter too, and
# against that a chain that was edited or cut is noticed.
clf.export_receipts(folder / "receipts.jsonl")
clf.save_pretrained(folder / "adapter")
receipts = verify_receipts(folder / "receipts.jsonl", adapter=folder / "adapter")
print(len(receipts), "receipts are whole, and the published adapter knows them all")

# %%
# What else there is to do (published adapters, backups, the pictures themselves) is in the user guide:
# :doc:`/user_guide/deletion`.
display = ForgettingTimelineDisplay.from_estimator(clf)
display.ax_.set_title("Four requests")
display.figure_.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
