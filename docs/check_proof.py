"""python check_proof.py proof.json [trusted.pem …]: needs Python 3.10 and OpenSSL 3, nothing else; see proofs.md."""
import base64, hashlib, json, pathlib, struct, subprocess, sys, tempfile  # noqa: E401, I001

def need(condition: object, problem: str) -> object:
    return condition or sys.exit(f"NOT PROVEN: {problem}")


def digest_of(kind: bytes, seq: int, stream: str, version: int, topic: str, state: str) -> bytes:
    a, b, c = stream.encode(), topic.encode(), state.encode()
    form = f">cQI{len(a)}sQI{len(b)}sI{len(c)}s"
    return hashlib.sha256(struct.pack(form, kind, seq, len(a), a, version, len(b), b, len(c), c)).digest()


def check_segment(proof: dict, trusted: list, events: list, seals: list, head: dict) -> str:
    chain = [json.loads(seal["state"])["data"] for seal in seals]
    for seal, data, before in zip(seals, chain, [{}, *chain], strict=False):
        seq, state = seal["seq"], seal["state"]
        digest = digest_of(b"\2", seq, "writer", seal["version"], "writer.batch_sealed", state[:-67]).hex()
        need(state[-67:] == digest + '"}}' and data["last"] == seq - 1, f"the seal {seq} was changed")
        need(not before or data["previous"] == before["digest"], f"the seal {seq} does not follow the one before it")
    for one in events:
        seal = need([it for it in chain if it["first"] <= one["seq"] <= it["last"]], "an event has no seal")[0]
        index, size, path = one["seq"] - seal["first"], seal["last"] - seal["first"] + 1, one["path"][:]
        node = digest_of(b"\0", one["seq"], "order/" + proof["order_id"], one["version"], one["topic"], one["state"])
        while size > 1:  # RFC 9162: the odd last node of a level goes up as it is
            if index ^ 1 < size:
                other = bytes.fromhex(path.pop(0))
                node = hashlib.sha256(b"\1" + (other + node if index % 2 else node + other)).digest()
            index, size = index // 2, (size + 1) // 2
        need(not path and node.hex() == seal["root"], f"event {one['seq']} is not what its seal covers")
    signed = f"order-ledger head v1\nledger {proof['ledger_id']}\nseq {seq}\ndigest {digest}\nsigned_at "
    need(head["text"].startswith(signed), "the head is not that of the last seal")
    numbers = [head["public_key"], head["signature"], *(node for event in events for node in event["path"])]
    need(all(bytes.fromhex(one).hex() == one for one in numbers), "a hash, key or signature is not in lower case")
    der = bytes.fromhex("302a300506032b6570032100" + head["public_key"])
    need(not trusted or der in trusted, "the head is signed by a key that is not trusted")
    command = "openssl pkeyutl -verify -pubin -keyform DER -rawin -inkey key -in text -sigfile sig"
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("key", der), ("text", head["text"].encode()), ("sig", bytes.fromhex(head["signature"]))):
            pathlib.Path(folder, name).write_bytes(content)
        need(not subprocess.run(command.split(), cwd=folder, capture_output=True).returncode, "the signature is wrong")
    return f"seal {seq} signed {head['text'].split()[-1]} by key {hashlib.sha256(der[12:]).hexdigest()[:16]}"


def check(text: str, trusted: list) -> str:
    need(json.dumps(proof := json.loads(text), indent=1, ensure_ascii=False) + "\n" == text, "it was reformatted")
    versions = [event["version"] for segment in proof["segments"] for event in segment["events"]]
    need(versions and versions == list(range(1, len(versions) + 1)), "an event of the order is missing")
    need(proof["format"] == "order-ledger proof v1", "it is of another format")
    heads = [check_segment(proof, trusted, **segment) for segment in proof["segments"]]
    return f"PROVEN: {len(versions)} events of order {proof['order_id']} in ledger {proof['ledger_id']}, {heads[-1]}"


if __name__ == "__main__":
    sys.argv[1:2] in ([], ["-h"], ["--help"]) and sys.exit(print(__doc__) if sys.argv[1:] else __doc__)  # noqa: T201
    try:
        trust = [base64.b64decode(pathlib.Path(name).read_text().split("-----")[2]) for name in sys.argv[2:]]
        sys.exit(print(check(pathlib.Path(sys.argv[1]).read_text("utf-8"), trust)))  # noqa: T201
    except Exception as error:
        sys.exit(f"NOT PROVEN: {type(error).__name__}: {error}")
