"""A web service: POST an image to /inspect for label, score, p-value and defects. MODEL names a skops file."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request

from ipca_sklearn import persistence
from ipca_sklearn.exceptions import ImageReadError

MAX_BYTES = MAX_PIXELS = 20_000_000  # of an upload, and of the image in it
torch.set_num_threads(int(os.environ.get("THREADS", "1")))  # for each image; before the first one
pipe = persistence.load_skops(os.environ["MODEL"])
extractor, detector = pipe[0], pipe[-1]
extractor.set_params(on_error="raise", max_pixels=MAX_PIXELS, n_jobs=1)
pipe.predict(np.zeros((1, *extractor.image_size_, 3), np.uint8))  # warm up: an engine is compiled
app = FastAPI()
workers = ThreadPoolExecutor(int(os.environ.get("AT_ONCE", "2")))  # images that are scored at the same time


@app.get("/health")
def health() -> dict:
    """Say which model answers."""
    return {"model": Path(os.environ["MODEL"]).name, "images learnt": detector.n_samples_seen_}


@app.post("/inspect")
async def inspect(request: Request) -> dict:
    """Take the bytes of an image file as the body."""
    if "transfer-encoding" in request.headers or int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise HTTPException(413, f"the image must state its length, at most {MAX_BYTES} bytes")
    try:
        return await asyncio.get_running_loop().run_in_executor(workers, judge, await request.body())
    except ImageReadError as error:
        raise HTTPException(422, str(error).replace("X[0]", "the upload")) from error


def judge(body: bytes) -> dict:
    """Score an image, in one of the threads."""
    features = extractor.transform([body])
    maps = detector.transform(features)  # runs the network, once
    scores = detector.score_maps(maps)
    (defects,) = detector.predict_regions(features, maps=maps)
    return {
        "label": 1 if float(scores[0]) >= detector.offset_ else -1,
        "score": float(scores[0]),
        "p_value": float(detector.p_values(scores=scores)[0]),
        "defects": [defect.as_dict() for defect in defects],
    }
