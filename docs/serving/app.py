"""A web service: POST an image to /inspect for label, score, p-value and defects. MODEL names a skops file."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastapi import FastAPI, HTTPException, Request

from ipca_sklearn import ImageReadError, persistence

LIMIT = 20_000_000  # bytes of an upload, and pixels of the image in it
pipe = persistence.load_skops(os.environ["MODEL"])
pipe[0].set_params(on_error="raise", max_pixels=LIMIT, n_jobs=1)
pipe.predict(np.zeros((1, *pipe[0].image_size_, 3), np.uint8))  # warm up: an engine is compiled
workers = ThreadPoolExecutor(int(os.environ.get("AT_ONCE", "2")))  # images that are scored at the same time
app = FastAPI()


@app.get("/health")
def health() -> dict:
    return {"model": os.path.basename(os.environ["MODEL"]), "images learnt": pipe[-1].n_samples_seen_}


@app.post("/inspect")
async def inspect(request: Request) -> dict:
    if "transfer-encoding" in request.headers or int(request.headers.get("content-length", 0)) > LIMIT:
        raise HTTPException(413, f"the image must state its length, at most {LIMIT} bytes")
    try:
        return await asyncio.get_running_loop().run_in_executor(workers, answer, await request.body())
    except ImageReadError as error:
        raise HTTPException(422, str(error).replace("X[0]", "the upload")) from error


def answer(body: bytes) -> dict:
    return pipe[-1].inspect(pipe[0].transform([body]))[0]
