"""A web service: POST an image to /inspect for label, score, p-value and defects. MODEL names the file of a model."""

import asyncio
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from ipca_sklearn import PatchFeatureExtractor, persistence
from ipca_sklearn.detection import find_defects
from ipca_sklearn.exceptions import ImageReadError

MODEL = os.environ["MODEL"]
MAX_BYTES, MAX_PIXELS = 20_000_000, 20_000_000  # of an upload, and of the image in it
torch.set_num_threads(int(os.environ.get("THREADS", "1")))  # for each image; before the first one

load = persistence.load_skops if MODEL.endswith(".skops") else persistence.load
pipe = load(MODEL)
extractor, detector = pipe[0], pipe[-1]
assert isinstance(extractor, PatchFeatureExtractor)
extractor.set_params(on_error="raise", max_pixels=MAX_PIXELS, n_jobs=1)
pipe.score_samples(np.zeros((1, *extractor.image_size_, 3), np.uint8))  # warm up: an engine is compiled
app = FastAPI()
turns = asyncio.Semaphore(int(os.environ.get("AT_ONCE", "2")))  # images that are scored at the same time


@app.get("/health")
def health() -> dict:
    """Say which model answers."""
    return {"model": Path(MODEL).name, "images learnt": detector.n_samples_seen_, "offset": detector.offset_}


@app.post("/inspect")
async def inspect(request: Request) -> dict:
    """Take the bytes of an image file as the body."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES} bytes")
    async with turns:  # the others wait here, and hold no thread
        return await run_in_threadpool(judge, bytes(body))


def judge(body: bytes) -> dict:
    """Score an image; in a thread, where other requests do not wait for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(body)
        try:
            features = extractor.transform([path])  # runs the network when it is read
            maps = detector.transform(features)
            sizes = features.image_sizes()
        except ImageReadError as error:
            raise HTTPException(422, str(error).replace(str(path), "the upload")) from error
    scores = detector.score_maps(maps)
    (defects,) = find_defects(
        maps,
        detector.map_threshold_,
        image_sizes=sizes,
        covered_box=extractor.covered_box,
        region=detector.region_,
        normal_maxima=detector.calibration_maxima_,
    )
    return {
        "label": 1 if float(scores[0]) >= detector.offset_ else -1,
        "score": float(scores[0]),
        "p_value": float(detector.p_values(scores=scores)[0]),
        "defects": [defect.as_dict() for defect in defects],
    }
