{{- define "chargegate.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Where a role's pods answer. Expects {root, role}. */}}
{{- define "chargegate.port" -}}
{{- if eq .role "worker" }}metrics{{ else }}http{{ end }}
{{- end }}

{{/* A worker answers its probes without TLS. Expects {root, role}. */}}
{{- define "chargegate.scheme" -}}
{{- if and .root.Values.tls.secretName (ne .role "worker") }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{/* preStop, the drain of server.shutdown_grace_ms, and a margin. */}}
{{- define "chargegate.terminationSeconds" -}}
{{- $graceMs := dig "server" "shutdown_grace_ms" 30000 .Values.config }}
{{- add .Values.rollout.preStopSeconds (ceil (divf $graceMs 1000)) .Values.rollout.spareSeconds }}
{{- end }}

{{/* What every container may do: as little as possible. */}}
{{- define "chargegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What every pod has, whatever runs in it: a service's, or a job's. Expects {root, role, claim}. */}}
{{- define "chargegate.podBase" -}}
serviceAccountName: {{ include "chargegate.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # Always would make the service's own files writable for the group at each start, and the service refuses such files.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: data
    {{- if .claim }}
    persistentVolumeClaim: {claimName: {{ .claim }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
  - name: tmp
    emptyDir: {}
  {{- if .root.Values.secrets.keys }}
  - name: secrets
    secret:
      secretName: {{ default (include "chargegate.fullname" .root) .root.Values.secrets.name }}
      defaultMode: 0440
      items:
        {{- range $setting, $key := .root.Values.secrets.keys }}
        - {key: {{ $key }}, path: {{ $setting }}}
        {{- end }}
  {{- end }}
  {{- with .root.Values.tls.secretName }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
{{- end }}

{{/* A container's image, rights, settings and files. */}}
{{- define "chargegate.containerBase" -}}
image: {{ include "chargegate.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "chargegate.containerSecurity" . | nindent 2 }}
env:
  {{- include "chargegate.environment" . | trim | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.secrets.keys }}
  - {name: secrets, mountPath: /etc/chargegate/secrets, readOnly: true}
  {{- end }}
  {{- if .Values.tls.secretName }}
  - {name: tls, mountPath: /etc/chargegate/tls, readOnly: true}
  {{- end }}
{{- end }}

{{/* The template of a role's pods. Expects {root, role}. */}}
{{- define "chargegate.podTemplate" -}}
{{- $values := get .root.Values .role }}
{{- $claim := eq .role "serve" | ternary (include "chargegate.claim" .root) "" }}
metadata:
  labels:
    {{- include "chargegate.labels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "chargegate.podBase" (dict "root" .root "role" .role "claim" $claim) | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "chargegate.terminationSeconds" .root }}
  {{- if and .root.Values.topologySpread.enabled (ne .role "serve") }}
  topologySpreadConstraints:
    {{- range .root.Values.topologySpread.keys }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "chargegate.selector" $ | nindent 10 }}
      matchLabelKeys: [pod-template-hash]  # an older release's pods do not count
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: chargegate
      args: [{{ .role }}]
      {{- include "chargegate.containerBase" .root | nindent 6 }}
      ports:
        - name: {{ include "chargegate.port" . }}
          containerPort: {{ eq .role "worker" | ternary 8081 8080 }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      {{- $probe := dict "path" "/health/live" "port" (include "chargegate.port" .) "scheme" (include "chargegate.scheme" .) }}
      # A start may have to migrate the database, or to wait for a server: five minutes.
      startupProbe:
        httpGet: {{ toJson $probe }}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 150
      livenessProbe:
        httpGet: {{ toJson $probe }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {{ toJson (set (deepCopy $probe) "path" "/health/ready") }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      lifecycle:
        preStop:
          sleep: {seconds: {{ .root.Values.rollout.preStopSeconds }}}
{{- end }}
