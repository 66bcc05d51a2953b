{{- define "chargegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "chargegate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "chargegate.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "chargegate.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The roles that this release has, with a blank between them. */}}
{{- define "chargegate.roles" -}}
{{- if eq .Values.mode "serve" }}serve{{ else }}api worker{{ end }}
{{- end }}

{{/* What a role's objects are called. Expects {root, role}. */}}
{{- define "chargegate.objectName" -}}
{{- if eq .role "worker" }}{{ include "chargegate.fullname" .root }}-worker{{ else }}{{ include "chargegate.fullname" .root }}{{ end }}
{{- end }}

{{- define "chargegate.claim" -}}
{{- default (include "chargegate.fullname" .) .Values.serve.persistence.existingClaim }}
{{- end }}

{{- define "chargegate.storageClass" -}}
{{- if .Values.storageClass.create }}
{{- default (printf "%s-%s" .Release.Namespace (include "chargegate.fullname" .)) .Values.storageClass.name }}
{{- else }}
{{- .Values.serve.persistence.storageClassName }}
{{- end }}
{{- end }}

{{/* The labels that select a role's pods. They never change. Expects {root, role}. */}}
{{- define "chargegate.selector" -}}
app.kubernetes.io/name: {{ include "chargegate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* Expects {root, role}; part-of is what Prometheus calls the job. */}}
{{- define "chargegate.labels" -}}
{{ include "chargegate.selector" . }}
app.kubernetes.io/part-of: chargegate
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Expects {root, role}. */}}
{{- define "chargegate.metadata" -}}
name: {{ include "chargegate.objectName" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "chargegate.labels" . | nindent 2 }}
{{- end }}
