"""The proxy that one writes in an afternoon, FastAPI and httpx: `python proxy.py UPSTREAM_PORT PORT`."""

import sys

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

app = FastAPI()
limits = httpx.Limits(max_connections=None)  # its 100 would refuse the streams that are held open
client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=60.0, limits=limits)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/{path:path}")
async def forward(path: str, request: Request) -> Response:
    body = await request.json()
    if not body.get("stream"):
        answer = await client.post(f"/v1/{path}", json=body)
        return Response(answer.content, answer.status_code, media_type="application/json")
    upstream = await client.send(client.build_request("POST", f"/v1/{path}", json=body), stream=True)
    return StreamingResponse(upstream.aiter_bytes(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
