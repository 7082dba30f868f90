"""Log sentence embeddings that come from elsewhere: no torch, only rows.

The embeddings here are hashed word counts, so that the example runs without a model; put a service's in their place.
"""

import zlib

import hydrophone
import numpy as np

WIDTH = 64
SENTENCES = ["the ship has left the harbour", "the whale sings below the ship", "nothing is heard above the water"]


def embed(sentence: str) -> np.ndarray:
    row = np.zeros(WIDTH, np.float32)
    for word in sentence.split():
        row[zlib.crc32(word.encode()) % WIDTH] += 1
    return row / np.linalg.norm(row)


rows = np.stack([embed(sentence) for sentence in SENTENCES])
hydrophone.log("sentences@1/embedding", rows, request=[f"sentence-{n}" for n in range(len(rows))], source="example")
print("sent" if hydrophone.flush() else "no answer from the daemon", len(rows), "rows of width", WIDTH)
