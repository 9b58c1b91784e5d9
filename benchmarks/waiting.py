"""A fake server that waits and then names one of two answers, always the same for the same request, in a process of its own.

    python benchmarks/waiting.py SECONDS ROOM    prints its port; beyond ROOM at once requests wait, or are refused with 429 where a third word is given
"""
import asyncio, json, subprocess, sys, urllib.request, zlib
from collections.abc import Iterator
from contextlib import contextmanager

def reply(asked: bytes) -> dict: # by what the model is to read
    letter = "AB"[zlib.crc32(json.dumps(json.loads(asked)["messages"]).encode()) % 2]
    return {"choices": [{"message": {"content": f"Winner: Response {letter}"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 200, "completion_tokens": 4}}


def answered(port: str) -> int: # requests so far
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/answered") as r: return int(r.read())


@contextmanager
def waiting(seconds: float, room: int = 4096, refuse: bool = False) -> Iterator[str]: # its port
    server = subprocess.Popen([sys.executable, __file__, str(seconds), str(room), *(["refuse"] if refuse else [])], stdout=subprocess.PIPE, text=True)
    try: yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


async def serve(seconds: float, room: int, refuse: bool) -> None:
    from aiohttp import web
    now, total, places = 0, 0, asyncio.Semaphore(room)
    async def answer(request: web.Request) -> web.Response:
        nonlocal now, total
        asked = await request.read()
        if refuse and now >= room: return web.json_response({"error": {"message": "too many at once"}}, status=429)
        now += 1
        try:
            async with places: await asyncio.sleep(seconds)
        finally: now -= 1
        total += 1
        return web.json_response(reply(asked))
    async def count(request: web.Request) -> web.Response: return web.Response(text=str(total))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/answered", count)
    await (runner := web.AppRunner(app, access_log=None)).setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)).start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__": asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3))
