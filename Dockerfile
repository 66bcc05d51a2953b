# Base images are pinned by digest. Where these were written no registry could be asked: the digests were read in several
# public build files that agree. `docker buildx imagetools inspect python:3.13.15-slim-bookworm` shows the one of today.
FROM python:3.13.15-slim-bookworm@sha256:2325bb286ec344af3e5898cc224b5844e2707ac6e26b1632516fd3edc84a5e26 AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
# Two environments, each with the versions and the hashes of its file: what builds is not in the image.
COPY requirements-build.txt requirements-image.txt ./
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements-build.txt \
    && python -m venv /opt/chargegate && /opt/chargegate/bin/pip install --require-hashes -r requirements-image.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/build/bin/python -m hatchling build -t wheel -d /build/dist \
    && /opt/chargegate/bin/pip install --no-deps --no-index /build/dist/*.whl \
    && /opt/chargegate/bin/pip uninstall --yes pip

FROM python:3.13.15-slim-bookworm@sha256:2325bb286ec344af3e5898cc224b5844e2707ac6e26b1632516fd3edc84a5e26
RUN groupadd --system --gid 10001 chargegate \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin chargegate \
    && install -d -o chargegate -g chargegate -m 0700 /data
COPY --from=build /opt/chargegate /opt/chargegate
ENV PATH=/opt/chargegate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CHARGEGATE_DATA_DIR=/data \
    CHARGEGATE_SERVER__HOST=0.0.0.0 \
    CHARGEGATE_WORKER__HOST=0.0.0.0
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# 8080 is the port of serve and api, 8081 that of a worker.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen\ntry: urlopen('http://127.0.0.1:8080/health/live', timeout=1)\nexcept OSError: urlopen('http://127.0.0.1:8081/health/live', timeout=1)"]
ENTRYPOINT ["chargegate"]
CMD ["serve"]
