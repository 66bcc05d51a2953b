{{/* The variables of a section's keys, at any depth. Expects {prefix, values}. */}}
{{- define "chargegate.variables" -}}
{{- range $key, $value := .values }}
{{- $name := printf "%s%s" $.prefix (upper $key) }}
{{- if kindIs "map" $value }}
{{- include "chargegate.variables" (dict "prefix" (printf "%s__" $name) "values" $value) }}
{{- else }}
- name: {{ $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the pods' environment says. Stops where something is missing that the service would not start without. */}}
{{- define "chargegate.environment" -}}
{{- $given := .Values.config }}
{{- $secrets := .Values.secrets.keys }}
{{- if eq .Values.mode "distributed" }}
{{- range list "queue.url" "database.url" }}
{{- $section := index (splitList "." .) 0 }}
{{- if not (or (hasKey $secrets .) (hasKey (get $given $section | default dict) "url")) }}
{{- fail (printf "mode distributed needs %s, in secrets.keys or in config" .) }}
{{- end }}
{{- end }}
{{- range list "security.encryption_keys" "security.token_hash_key" }}
{{- if not (hasKey $secrets .) }}
{{- fail (printf "mode distributed needs %s in secrets.keys: all pods must have the same" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (or (hasKey $secrets "security.api_keys") (dig "security" "allow_anonymous" false $given)) }}
{{- fail "access keys are needed: security.api_keys in secrets.keys, or config.security.allow_anonymous" }}
{{- end }}
{{- range $key, $_ := $secrets }}
{{- $parts := splitList "." $key }}
{{- if dig (initial $parts | join ".") (last $parts) "" $given }}
{{- fail (printf "%s is both in config and in secrets.keys" $key) }}
{{- end }}
{{- end }}
{{- /* Not with mergeOverwrite, which takes an empty text and false for nothing. */}}
{{- $all := deepCopy $given }}
{{- range $section := list "audit" "logging" "server" }}
{{- if not (hasKey $all $section) }}{{ $_ := set $all $section dict }}{{ end }}
{{- end }}
{{- if not (hasKey $all.audit "csv_path") }}
{{- $_ := set $all.audit "csv_path" (eq .Values.mode "serve" | ternary "/data/authorization_audit.log" "") }}
{{- end }}
{{- if not (hasKey $all.logging "format") }}{{ $_ := set $all.logging "format" "json" }}{{ end }}
{{- $_ := set $all.server "host" "0.0.0.0" }}
{{- $_ := set $all.server "port" 8080 }}
{{- $_ := set $all "worker" (dict "host" "0.0.0.0" "port" 8081) }}
{{- /* A folder in the volume, because the volume's own folder belongs to root and is writable for a group. */}}
{{- $_ := set $all "data_dir" "/data/chargegate" }}
{{- include "chargegate.variables" (dict "prefix" "CHARGEGATE_" "values" $all) }}
{{- range $key, $_ := $secrets }}
- name: CHARGEGATE_{{ $key | upper | replace "." "__" }}_FILE
  value: /etc/chargegate/secrets/{{ $key }}
{{- end }}
{{- if .Values.tls.secretName }}
- name: CHARGEGATE_SERVER__TLS_CERTIFICATE
  value: /etc/chargegate/tls/tls.crt
- name: CHARGEGATE_SERVER__TLS_KEY
  value: /etc/chargegate/tls/tls.key
{{- end }}
{{- end }}
