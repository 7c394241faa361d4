# The device: no torch, no compiler, not root.
#   docker build -f deploy/device.Dockerfile -t pilltrack .
#   docker buildx build --platform linux/amd64,linux/arm64 -f deploy/device.Dockerfile -t pilltrack .
#   docker run --rm -p 8000:8000 -v pilltrack:/var/lib/pilltrack -e PILLTRACK_TOKEN=… pilltrack
# A camera: --device /dev/video0 --group-add video, and `serve --camera 0` at the end. Every part has
# wheels for linux/arm64, 64-bit Raspberry Pi OS included; there are none for 32-bit systems.
FROM python:3.11-slim-bookworm AS build

WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/pilltrack \
    && /opt/pilltrack/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[mqtt]"

FROM python:3.11-slim-bookworm

COPY --from=build /opt/pilltrack /opt/pilltrack
RUN useradd --create-home --uid 1000 --groups video pilltrack \
    && install --directory --owner=pilltrack --mode=0700 /var/lib/pilltrack

ENV PATH=/opt/pilltrack/bin:$PATH \
    PILLTRACK_HOME=/var/lib/pilltrack
USER 1000
VOLUME /var/lib/pilltrack
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["pilltrack"]
# Others reach a container's port, so serve asks for PILLTRACK_TOKEN and does not start without it.
CMD ["serve", "--host", "0.0.0.0"]
