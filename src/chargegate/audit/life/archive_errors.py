"""What an archive's refusal means, in one line that stays the same for as long as the fault does."""

import re
from typing import Final

from chargegate.model import one_line

_KEYS: Final = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_WHAT_TO_DO: Final = {
    "AccessDenied": "these keys lack the right to list, read, write and delete below the prefix; give it to them there",
    "AllAccessDisabled": "the bucket is closed; open it there",
    "AuthorizationHeaderMalformed": "set `region` in the address to the bucket's",
    "ExpiredToken": "the keys are no longer valid; give the service new ones",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID is not known there; correct it",
    "InvalidBucketName": "correct the name of the bucket in the address",
    "InvalidToken": "AWS_SESSION_TOKEN is not that of these keys; correct or remove it",
    "NoSuchBucket": "make the bucket there, or correct its name in the address",
    "NoSuchKey": "the object is gone",
    "PermanentRedirect": "set `region` or `endpoint` in the address to the bucket's",
    "QuotaExceeded": "the bucket is full; make room there, or raise its limit",
    "RequestTimeTooSkewed": "set this machine's clock",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID; correct it",
    "SlowDown": "it is asked to wait, and tries again",
}
_WITHOUT_CODE: Final = {
    "301": "set `region` or `endpoint` in the address to the bucket's",
    "401": f"correct {_KEYS}",
    "403": f"{_KEYS} are wrong, or lack the right to do this; correct them, or give them the right there",
    "507": "it is full; make room there",
}
_GIVEN_BY_MACHINE: Final = ("//169.254.169.254", "//169.254.170.2", "/latest/api/token", "sts.amazonaws.com")
_code = re.compile(r"<Code>\s*([\w.]+)\s*</Code>").search
_message = re.compile(r"<Message>\s*([^<]+?)\s*</Message>").search
_status = re.compile(r"status code: (\d{3})(?: ([A-Z][A-Za-z ]*))?").search
_host = re.compile(r"Error performing [A-Z]+ (https?://[^/\s]+)").search
_taken = re.compile(r" in \d[\d.]*(?:ns|µs|us|ms|s)\b.*?(?= - |$)|,? ?after \d+ retries|elapsed: [^,]*,?").sub
_reasons = (
    re.compile(r'\bmessage: "([^"]+)"').search,
    re.compile(r'"(failed to lookup address[^"]*)"').search,
    re.compile(r"(invalid peer certificate: [\w ]+|InvalidCertificate\(\s*\w+)").search,
)
_CUT_OFF: Final = ("IncompleteMessage", "ConnectionReset", "BrokenPipe", "UnexpectedEof", "ConnectionAborted")


def has_code(text: str) -> bool:
    """Whether an error says S3's own word for it. The answer to HEAD has none, because it has no body."""
    return _code(text) is not None


def what_it_means(key: str, text: str) -> str:
    """``text``: the library's error. It goes on for pages, and says how long the request took. No text that a server
    may fill with what was sent, such as the signature, is repeated, but for S3's own message."""
    if any(place in text for place in _GIVEN_BY_MACHINE):
        return f"there are no keys for it: set {_KEYS}, or give this machine a role"
    if code := _code(text):
        message = _message(text)
        said = _WHAT_TO_DO.get(code[1]) or (one_line(message[1])[:200] if message else "")
        return f"{code[1]}: {said}" if said else code[1]
    if status := _status(text):
        return _without_code(key, status[1], (status[2] or "").strip())
    host = _host(text)
    if host and "HTTP error" in text:
        return f"{host[1]} does not answer: {_reason(text)}"
    return one_line(_taken("", text.partition("\n")[0]))[:300]


def _without_code(key: str, status: str, name: str) -> str:
    if status == "404":
        return f"{key}: is not there"
    said = _WITHOUT_CODE.get(status, "")
    return f"{status} {name}".rstrip() + (f": {said}" if said else "")


def _reason(text: str) -> str:
    if any(word in text for word in _CUT_OFF):  # which of them it is depends on the moment
        return "it cuts off the connection"
    for search in _reasons:
        if found := search(text):
            return " ".join(found[1].split())
    if "timed out" in text or "TimedOut" in text or "kind: Timeout" in text:
        return "it takes too long"
    return "it does not speak TLS" if "InvalidContentType" in text else "the connection failed"
