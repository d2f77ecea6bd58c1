"""URLs as data sets hold them: what is sent for them, and what errors show of them."""

import re

from yarl import URL

from lumina_jax.errors import InputError

USER_INFO = re.compile(r"(?<=://)[^/?#]*@")
SECRET = re.compile(
    r"([?&;][^=&#]*(?:sig|token|secret|key|password|passwd|credential|auth|session)[^=&#]*=)[^&#\s]*", re.I
)
WELL_FORMED = re.compile(r"(?:[!#$&'()*+,/:;=?@\[\]~\w.-]|%[0-9a-fA-F]{2})+", re.ASCII)


def is_http(path: str) -> bool:
    """Whether a path is the URL of a web server."""
    return path.lower().startswith(("http://", "https://"))


def shown(path: str) -> str:
    """A path or URL as errors name it: without user, password, and the signatures and keys of its query."""
    return SECRET.sub(r"\1***", USER_INFO.sub("***@", path)) if "://" in path else path


def parse_url(text: str, base: URL | None = None) -> URL:
    """The URL of a web server, which may be relative to ``base``.

    A well-formed one is sent as it is, because some are signed; of another the odd letters are quoted. Raises InputError for what
    is no such URL.
    """
    try:
        url = URL(text, encoded=WELL_FORMED.fullmatch(text) is not None)
        url = base.join(url) if base else url
        valid = url.scheme in ("http", "https") and url.host and url.port != 0
    except ValueError as error:
        raise InputError(f"{shown(text)} is no URL: {error}; correct it", cause="no URL") from error
    if not valid:
        raise InputError(f"{shown(text)} is no URL of a web server; one begins with http://HOST/", cause="no URL")
    return url


def host_of(url: URL) -> str:
    """The server of a URL, with the port unless it is that of the scheme."""
    return str(url.origin()).partition("://")[2]
