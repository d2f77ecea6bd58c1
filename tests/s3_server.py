"""The server of gcs_server.py with the protocol of Amazon S3 in front of the same buckets, as s3fs and TensorStore speak it.

Paths are /BUCKET/KEY; signatures are not looked at. A copy, uploads in parts, deletions of many and preconditions are served.
"""

import itertools
import re
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from aiohttp import web
from gcs_objects import GcsError, StoredObject
from gcs_server import GcsServer

CODES = {404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange", 503: "SlowDown"}


class S3Server(GcsServer):
    """A GcsServer that clients of S3 find by :attr:`environment`."""

    def __init__(self, latency: float = 0.0, port: int = 0):
        super().__init__(latency, port)
        self._parts: dict[str, dict[int, bytes]] = {}
        self._part_numbers = itertools.count(1)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _refusal(self, error: GcsError) -> web.Response:
        if error.status == 304:
            return web.Response(status=304)
        code = "NoSuchBucket" if "bucket does not exist" in str(error) else CODES.get(error.status, "InternalError")
        condition = "<Condition>If-None-Match</Condition>" * (error.status == 412)
        return _xml(
            f"<Error><Code>{code}</Code><Message>{escape(str(error))}</Message>{condition}</Error>", error.status
        )

    async def _answer(self, request: web.Request) -> web.Response:
        bucket, _, name = unquote(urlsplit(request.raw_path).path).strip("/").partition("/")
        query, method = dict(request.query), request.method
        data = _plain(request, await request.read())
        if not bucket:
            names = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in self.buckets.names())
            return _xml(f"<ListAllMyBucketsResult><Buckets>{names}</Buckets></ListAllMyBucketsResult>")
        if not name:
            return self._of_bucket(method, bucket, query, data)
        if "uploads" in query or "uploadId" in query:
            return self._in_parts(request, bucket, name, query, data)
        if method == "PUT":
            return self._put(request, bucket, name, data)
        if method == "DELETE":
            self.buckets.objects(bucket).pop(name, None)
            return web.Response(status=204)
        found = self.buckets.get(bucket, name, {})
        if request.headers.get("If-None-Match") == _etag(found):
            raise GcsError(304, "Not Modified")
        if request.headers.get("If-Match", _etag(found)) != _etag(found):
            raise GcsError(412, "It changed meanwhile.")
        answer = self._content(request, found)
        answer.headers["ETag"] = _etag(found)
        if method == "HEAD":
            answer.headers["Content-Length"] = str(len(answer.body or b""))
        answer.headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        return answer

    def _of_bucket(self, method: str, bucket: str, query: dict[str, str], data: bytes) -> web.Response:
        if method == "PUT":
            self.buckets.make(bucket)
            return web.Response()
        self.buckets.objects(bucket)
        if method == "POST" and "delete" in query:
            names = [_unescaped(name) for name in re.findall(r"<Key>(.*?)</Key>", data.decode(), re.DOTALL)]
            for name in names:
                self.buckets.objects(bucket).pop(name, None)
            return _xml(
                "<DeleteResult>"
                + "".join(f"<Deleted><Key>{escape(n)}</Key></Deleted>" for n in names)
                + "</DeleteResult>"
            )
        if method == "HEAD":
            return web.Response()
        if "location" in query:
            return _xml("<LocationConstraint/>")
        return self._listing(bucket, query)

    def _listing(self, bucket: str, query: dict[str, str]) -> web.Response:
        asked = {name: query[name] for name in ("prefix", "delimiter") if name in query}
        asked |= {"maxResults": query.get("max-keys", "1000")}
        if after := query.get("continuation-token", query.get("start-after", "")):
            asked["pageToken"] = after
        page = self.buckets.listing(bucket, asked)
        entries = "".join(
            f"<Contents><Key>{escape(found['name'])}</Key><LastModified>{found['updated']}</LastModified>"
            f"<ETag>&quot;{found['generation']}&quot;</ETag><Size>{found['size']}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for found in page.get("items", [])
        )
        entries += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in page.get("prefixes", [])
        )
        count = len(page.get("items", [])) + len(page.get("prefixes", []))
        following = page.get("nextPageToken", "")
        token = f"<NextContinuationToken>{escape(following)}</NextContinuationToken>" * bool(following)
        return _xml(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(query.get('prefix', ''))}</Prefix>"
            f"<KeyCount>{count}</KeyCount><MaxKeys>{query.get('max-keys', 1000)}</MaxKeys>"
            f"<IsTruncated>{str(bool(following)).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )

    def _put(self, request: web.Request, bucket: str, name: str, data: bytes) -> web.Response:
        if source := request.headers.get("x-amz-copy-source"):
            from_bucket, _, from_name = unquote(source).lstrip("/").partition("/")
            copy = self.buckets.copy((from_bucket, from_name), (bucket, name), {})
            return _xml(f"<CopyObjectResult><ETag>&quot;{copy.generation}&quot;</ETag></CopyObjectResult>")
        stored = self.buckets.put(bucket, name, data, self._precondition(request, bucket, name))
        return web.Response(headers={"ETag": _etag(stored)})

    def _precondition(self, request: web.Request, bucket: str, name: str) -> dict[str, str]:
        if request.headers.get("If-None-Match") == "*":
            return {"ifGenerationMatch": "0"}
        if wanted := request.headers.get("If-Match"):
            return {"ifGenerationMatch": wanted.strip('"')}
        return {}

    def _in_parts(
        self, request: web.Request, bucket: str, name: str, query: dict[str, str], data: bytes
    ) -> web.Response:
        if "uploads" in query:
            self.buckets.objects(bucket)
            number = str(next(self._part_numbers))
            self._parts[number] = {}
            return _xml(
                f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(name)}</Key>"
                f"<UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            )
        parts = self._parts.get(query["uploadId"])
        if parts is None:
            raise GcsError(404, "No such upload")
        if request.method == "PUT":
            if source := request.headers.get("x-amz-copy-source"):
                from_bucket, _, from_name = unquote(source).lstrip("/").partition("/")
                data = self.buckets.get(from_bucket, from_name, {}).data
                if span := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("x-amz-copy-source-range", "")):
                    data = data[int(span[1]) : int(span[2]) + 1]
            parts[int(query["partNumber"])] = data
            return web.Response(headers={"ETag": f'"{query["partNumber"]}"'})
        del self._parts[query["uploadId"]]
        if request.method == "DELETE":
            return web.Response(status=204)
        content = b"".join(parts[number] for number in sorted(parts))
        stored = self.buckets.put(bucket, name, content, self._precondition(request, bucket, name))
        return _xml(
            f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(name)}</Key>"
            f"<ETag>&quot;{stored.generation}&quot;</ETag></CompleteMultipartUploadResult>"
        )


def _xml(text: str, status: int = 200) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
    return web.Response(text=text, status=status, content_type="application/xml")


def _etag(found: StoredObject) -> str:
    return f'"{found.generation}"'


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _plain(request: web.Request, body: bytes) -> bytes:
    """The content of a body that comes in signed chunks, each behind a line with its length."""
    if not request.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        return body
    content = bytearray()
    while body:
        line, _, body = body.partition(b"\r\n")
        length = int(line.partition(b";")[0] or b"0", 16)
        if not length:
            break
        content += body[:length]
        body = body[length + 2 :]
    return bytes(content)
