"""A detector as a web page and an HTTP interface; needs the extra ``serve`` (FastAPI and uvicorn)."""
