FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY src src
# requirements.txt also pins the development tools, so pip uses it only as a list of constraints here.
RUN sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements.txt > pins.txt \
    && python -m venv /opt/chargegate \
    && /opt/chargegate/bin/pip install --no-cache-dir --disable-pip-version-check \
        -c pins.txt ".[kafka,postgres,rabbitmq,redis]"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin chargegate \
    && install -d -o chargegate -g chargegate -m 0700 /data
COPY --from=build /opt/chargegate /opt/chargegate
ENV PATH=/opt/chargegate/bin:$PATH \
    CHARGEGATE_DATA_DIR=/data \
    CHARGEGATE_SERVER__HOST=0.0.0.0 \
    CHARGEGATE_WORKER__HOST=0.0.0.0
WORKDIR /data
VOLUME /data
USER 10001
EXPOSE 8080 8081
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["chargegate"]
CMD ["serve"]
