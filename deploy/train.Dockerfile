# The training machine: everything but the repository, which is mounted, so that git and DVC see it.
#   docker build -f deploy/train.Dockerfile -t pilltrack-train .
#   docker run --rm -it -v "$PWD:/project" pilltrack-train dvc repro        (--gpus all, where there is one)
# linux/amd64 brings CUDA with torch; linux/arm64 (Apple silicon, Graviton) is built the same way and
# trains on the CPU: docker buildx build --platform linux/arm64 …
FROM python:3.11-slim-bookworm

# Versions of git and make are Debian's business.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

# The pins and an empty package: PYTHONPATH puts the mounted code before it, which may change.
WORKDIR /opt/pilltrack
COPY pyproject.toml constraints.txt ./
RUN mkdir -p src/pilltrack \
    && touch README.md LICENSE src/pilltrack/__init__.py \
    && python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[train,mqtt,postgres]" \
    && useradd --create-home --uid 1000 pilltrack \
    && git config --system --add safe.directory /project

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/project/src \
    DVC_NO_ANALYTICS=1
USER 1000
WORKDIR /project
CMD ["pilltrack", "--help"]
